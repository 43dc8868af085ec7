"""Pictures and text to the model's inputs: the image tokens' placeholders, the start token, the prompt around them."""

import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NamedTuple, cast

from tokenizers import AddedToken
from transformers import AutoImageProcessor, BatchFeature, ProcessorMixin

from .configuration_captioner import CaptionerConfig

QUESTION = "{question}"

# Where text of the data goes, until the markup around it is made. Unicode keeps this character for private use.
_SLOT = "\ue000"

# Put before a chat template that writes today's date: what is asked must be what was trained on. The day is Llama's.
_ONE_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"

# Put before a language model's chat template, which knows text alone: a turn's parts become one text.
_JOIN_PARTS = (
    "{%- set joined = namespace(messages=[]) -%}{%- for message in messages -%}{%- if message.content is string -%}"
    "{%- set joined.messages = joined.messages + [message] -%}{%- else -%}{%- set turn = namespace(text='') -%}"
    "{%- for part in message.content -%}{%- set turn.text = turn.text + (part.text if part.type == 'text' else "
    "'IMAGE_TOKEN') -%}{%- endfor -%}"
    "{%- set joined.messages = joined.messages + [dict(message, content=turn.text)] -%}{%- endif -%}{%- endfor -%}"
    "{%- set messages = joined.messages -%}"
)


def check_prompt(prompt: str, image_token: str = "<image>") -> str:
    """The prompt with its `<image>`: in front, where it does not say where the image goes.

    Raises:
        ValueError: if it has several images, a field that is not `{question}`, or a question before the image.
    """
    fields = re.findall(r"\{\w*\}", prompt)
    if unknown := [field for field in fields if field != QUESTION]:
        raise ValueError(
            f"{unknown[0]} in the prompt cannot be filled: its one field is {QUESTION}, and the answer follows it."
        )
    if len(fields) > 1:
        raise ValueError(f"The prompt has {QUESTION} {len(fields)} times: a prompt asks one question.")
    if (count := prompt.count(image_token)) > 1:
        raise ValueError(f"The prompt has {image_token} {count} times: it is of one image.")
    if count == 0:
        return image_token + prompt
    if QUESTION in prompt.partition(image_token)[0]:
        raise ValueError(
            f"In the prompt, {QUESTION} stands before {image_token}: put it behind, for questions share their image's "
            "tokens."
        )
    return prompt


class _Rendering(NamedTuple):
    """A prompt as text.

    Attributes:
        markup: what stands before, between and behind the texts of the data: questions, and examples' answers.
        asks: whether there is a question.
        separator: the space that belongs to an answer's first word, or nothing.
        ending: of a chat, what the template writes behind an answer.
    """

    markup: list[str]
    asks: bool
    separator: str
    ending: str


class CaptionerProcessor(ProcessorMixin):
    r"""
    Wraps an image processor and a tokenizer.

    `processor(images=image)` asks for a caption as the model was trained to be asked; `processor(images=image,
    text="A photo of")` for the rest of one. Text may say where the image goes with `<image>`; where it does not, the
    image goes in front.

    Where the package `vlm_caption` is imported, its `open_image` opens the images here too: paths, URLs, bytes and
    arrays, transparency on white, deep pixels scaled. The pipeline `image-text-to-text` opens paths and Pillow images
    itself before they come here (those of a chat excepted), in transformers' own way, which shows the colour behind
    transparency and makes 16-bit pictures white: give it what `vlm_caption.open_image` returns.

    Args:
        image_processor: any image processor.
        tokenizer: the language model's tokenizer, with `image_token` added (see [`CaptionerProcessor.from_config`]).
        image_seq_length (`int`): placeholders an image takes.
        start_token (`str`, *optional*): what stands at position 0 of every input: the BOS, or nothing.
        image_token (`str`): how a placeholder is written in text.
        chat_template (`str`, *optional*): as of `ProcessorMixin`; without one, the tokenizer's.
        prompt (`str`): the text around the image that the model was trained with, `<image>` where the image goes (in
            front, if it is not said) and `{question}` where a question does. The answer follows it.
        chat (`bool`): whether the prompt is the user's turn in the chat template, and the answer the assistant's.
    """

    # Set by the package; this file travels with checkpoints without it, and leaves images to transformers then.
    open_image: ClassVar[Callable[[Any], Any] | None] = None

    def __init__(
        self,
        image_processor: Any = None,
        tokenizer: Any = None,
        image_seq_length: int = 1,
        start_token: str | None = None,
        image_token: str = "<image>",
        chat_template: str | None = None,
        prompt: str = "",
        chat: bool = False,
        **kwargs,
    ):
        self._keep(tokenizer, image_seq_length, start_token, image_token, prompt, chat)
        super().__init__(image_processor, tokenizer, chat_template=chat_template, **kwargs)

    def _keep(
        self,
        tokenizer: Any,
        image_seq_length: int,
        start_token: str | None,
        image_token: str,
        prompt: str,
        chat: bool,
    ) -> None:
        """Keeps what is not the base class's; `VectorProcessor` does the same, and has another base."""
        self.prompt = prompt
        self.chat = chat
        self.image_seq_length = image_seq_length
        self.start_token = start_token
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        tokenizer.padding_side = "left"  # a decoder continues each row at its right end

    def to_dict(self) -> dict[str, Any]:
        """As of `ProcessorMixin`, with the place of this code in checkpoints that carry it."""
        return super().to_dict() | {
            "auto_map": {"AutoProcessor": f"{__name__.rpartition('.')[2]}.{type(self).__name__}"}
        }

    @classmethod
    def from_config(cls, config: CaptionerConfig, image_processor, tokenizer, image_token: str = "<image>"):
        """The processor that belongs to a model of this config. The tokenizer is changed in place.

        Where the model has no vision tower that is a [`VectorProcessor`], and `image_processor` does not count.

        Raises:
            ValueError: if the tokenizer knows `image_token` as something else, or has grown past the placeholder.
        """
        if image_token not in tokenizer.get_vocab():
            # Language models pad their embedding tables; the placeholder must have an id behind the padding, and a
            # tokenizer hands out ids in order.
            gap = cast(int, config.image_token_id) - len(tokenizer)
            tokenizer.add_tokens([AddedToken(f"<unused_{i}>", special=True) for i in range(gap)], special_tokens=True)
            tokenizer.add_tokens([AddedToken(image_token, special=True)], special_tokens=True)
        if (image_token_id := tokenizer.convert_tokens_to_ids(image_token)) != config.image_token_id:
            raise ValueError(
                f"The tokenizer has {image_token} at id {image_token_id}, and the model's image placeholder is "
                f"{config.image_token_id}: set image_token_id of the model, or choose another image_token."
            )
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        start_token_id = config.start_token_id
        processor_class, parts = cls, {"image_processor": image_processor, "tokenizer": tokenizer}
        if config.feature_size is not None:
            processor_class, parts = VectorProcessor, {"tokenizer": tokenizer}
        return processor_class(
            **parts,
            image_seq_length=config.image_seq_length,
            start_token=None if start_token_id is None else tokenizer.convert_ids_to_tokens(start_token_id),
            image_token=image_token,
        )

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]
        cls, pretrained_model_name_or_path, backend: str = "pil", **kwargs
    ):
        """As of `ProcessorMixin`; `backend` is the image processor's, as of `AutoImageProcessor`.

        Pillow by default, whether torchvision is installed or not: the two differ in their pixels. Of a model without
        a vision tower, it is a [`VectorProcessor`].
        """
        kwargs["trust_remote_code"] = False  # no part of a captioner's processor needs code of its own
        settings, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if settings and "image_processor" not in settings:
            return VectorProcessor.from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        # The base class would hand `backend` to the tokenizer too, which has its own meaning of the word.
        processor.image_processor = AutoImageProcessor.from_pretrained(
            pretrained_model_name_or_path, backend=backend, **kwargs
        )
        return processor

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs):
        """
        Args:
            images: a picture or a list of them, as `vlm_caption.open_image` takes them, or a 4-D array or tensor;
                without the package, as of the image processor. Given `do_rescale=False` or `input_data_format`,
                arrays and tensors go to the image processor as they are.
            text: a prompt for each row. Without `<image>` in it, each row gets one image in front; a single prompt
                is then repeated for all images. None, or an empty text: what the model was trained with. Images in
                lists of their own, one a row, must be as many as the `<image>` of that row.
            **kwargs: as of `ProcessorMixin.__call__` (`return_tensors="pt"`, `padding=True`, …).

        Returns:
            `input_ids` and `attention_mask`, int64 [B, T], and `pixel_values`, float [I, 3, H, W].
        """
        if images is not None:
            images = self._open_images(images, kwargs | kwargs.get("images_kwargs", {}))
        rows = self._place_images(images, text)
        kwargs.setdefault("add_special_tokens", False)  # `get_text_with_replacements` writes the start token out
        return super().__call__(images=images, text=rows, **kwargs)

    def _open_images(self, images, settings: dict[str, Any]):
        if self.open_image is None:
            return self.image_processor.fetch_images(images)
        is_array = hasattr(images, "ndim")
        if is_array and (settings.get("do_rescale") is False or settings.get("input_data_format") is not None):
            return images
        if isinstance(images, (list, tuple)) or (is_array and images.ndim > 3):
            return [self._open_images(image, settings) for image in images]
        return self.open_image(images)

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):  # ty: ignore[incompatible-method-override]
        """As of `ProcessorMixin`, also with a language model's template, which knows nothing of images."""
        if chat_template is None:
            chat_template = self._language_template()
            if chat_template is not None and self.image_token not in chat_template:
                chat_template = _JOIN_PARTS.replace("IMAGE_TOKEN", self.image_token) + chat_template
        return super().apply_chat_template(conversation, chat_template=chat_template, **kwargs)

    def _language_template(self) -> str | None:
        templates: Any = self.chat_template or self.tokenizer.chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    @property
    def end_token_id(self) -> int:
        """What ends an answer: the end token, or in a chat the token that ends the assistant's turn.

        Raises:
            ValueError: for a chat without a chat template.
        """
        if self.chat:
            ids = self.tokenizer(self._render("", 0).ending, add_special_tokens=False).input_ids
            if ids and self.tokenizer.added_tokens_decoder.get(ids[0]) is not None:
                return ids[0]
        return self.tokenizer.eos_token_id

    def answer_separator(self, prompt: str = "") -> str:
        """What stands between a prompt and its answer, and is tokenized with the answer: a space, or nothing.

        Byte-pair tokenizers keep a word's space with the word.
        """
        return self._render(prompt, 0).separator

    def render_prompt(
        self, question: str | None = None, prompt: str = "", examples: Sequence[tuple[str | None, str]] = ()
    ) -> str:
        """The text of a row up to its answer, `<image>` where pictures go; for `processor(images=…, text=…)`.

        Args:
            question: what fills `{question}`.
            prompt: instead of the processor's own, if it is not empty.
            examples: a question, or None, and the answer to it, for each image that is shown before the last one.

        Raises:
            ValueError: if the prompt is wrong, or there is no question for it, or no place for one.
        """
        parts = self._parts(self._render(prompt, len(examples)), [*examples, (question, "")])
        return "".join(parts)

    def encode_prompts(
        self,
        questions: Sequence[str | None] = (None,),
        prompt: str = "",
        examples: Sequence[tuple[str | None, str]] = (),
    ) -> tuple[list[int], list[list[int]]]:
        """Token ids of the prompt with each question; questions and answers that look like special tokens are text.

        Args:
            questions: what fills `{question}`, in turn.
            prompt, examples: as of `render_prompt`.

        Returns:
            The ids that are the same for all questions, from the start token to the last image's placeholders; and
            for each question the ids behind them.

        Raises:
            ValueError: as of `render_prompt`.
        """
        rendering = self._render(prompt, len(examples))
        head: list[str] = []
        tails = []
        for question in questions:
            parts = self._parts(rendering, [*examples, (question, "")])
            last = len(parts) - (3 if rendering.asks else 1)  # the markup with the last image
            before, _, behind = parts[last].rpartition(self.image_token)
            head = [*parts[:last], before]
            tails.append([self.image_token + behind, *parts[last + 1 :]])
        if not tails:
            return [], []
        image = self.image_token * self.image_seq_length
        head[::2] = [markup.replace(self.image_token, image) for markup in head[::2]]
        head[-1] += image
        head[0] = self._missing_start(head[0]) + head[0]
        head_ids, *tail_ids = self._tokenize([head, *tails])
        # Tokenized behind a placeholder, as in one piece with it: some tokenizers treat a text's beginning otherwise.
        return head_ids, [ids[ids.index(self.image_token_id) + 1 :] for ids in tail_ids]

    def _tokenize(self, rows: list[list[str]]) -> list[list[int]]:
        """Ids of rows of markup and text of the data in turn; in one call, as far as nothing looks like markup."""
        special = [str(token) for token in self.tokenizer.added_tokens_decoder.values()]
        encoded = self.tokenizer(["".join(parts) for parts in rows], add_special_tokens=False).input_ids
        for number, parts in enumerate(rows):
            if any(token in text for text in parts[1::2] for token in special):
                encoded[number] = [
                    token_id
                    for place, text in enumerate(parts)
                    for token_id in self.tokenizer(
                        text, add_special_tokens=False, split_special_tokens=place % 2 == 1
                    ).input_ids
                ]
        return encoded

    def _parts(self, rendering: _Rendering, turns: Sequence[tuple[str | None, str]]) -> list[str]:
        """Markup and text of the data in turn: of each image a question, if the prompt has one, and its answer."""
        texts = []
        for question, answer in turns:
            if rendering.asks and not (question or "").strip():
                raise ValueError(f"The prompt has {QUESTION}, and there is no question to fill it: give one.")
            if not rendering.asks and question is not None:
                raise ValueError(f"There is no place for a question in the prompt: write {QUESTION} there.")
            texts += [cast(str, question).strip()] if rendering.asks else []
            texts += [rendering.separator + answer.strip()]
        parts = [rendering.markup[0]]
        for text, markup in zip(texts, rendering.markup[1:], strict=False):  # the last answer is to come
            parts += [text, markup]
        return parts

    def _render(self, prompt: str, examples: int) -> _Rendering:
        """The markup of a prompt behind so many examples, as [`_Rendering`]."""
        turn = check_prompt(prompt or self.prompt, self.image_token).replace(QUESTION, _SLOT)
        asks = _SLOT in turn
        if not self.chat:
            turn = turn.rstrip()
            separator = "" if turn.endswith(self.image_token) else " "
            return _Rendering(((turn + _SLOT + "\n") * examples + turn).split(_SLOT), asks, separator, "")
        template = self._language_template()
        if template is None:
            raise ValueError(
                "The language model has no chat template: train it without data.chat, or take its chat or instruct "
                "version."
            )
        messages = [{"role": "user", "content": turn}, {"role": "assistant", "content": _SLOT}] * (examples + 1)
        text = self.tokenizer.apply_chat_template(messages, chat_template=_ONE_DATE + template, tokenize=False)
        *markup, ending = text.split(_SLOT)
        if len(markup) != (examples + 1) * (asks + 1) or self.image_token not in text:
            raise ValueError("The chat template does not write the turns as they are: train without data.chat.")
        separator = " " if markup[-1].endswith(" ") else ""
        for place in range(asks, len(markup), asks + 1):  # before each answer
            markup[place] = markup[place].rstrip(" ")
        return _Rendering(markup, asks, separator, ending)

    def _missing_start(self, row: str) -> str:
        """The start token, unless the row has it in front or there is none."""
        start = self.start_token or ""
        return "" if row.startswith(start) else start

    def get_text_with_replacements(self, text, *args, **kwargs):
        """As of `ProcessorMixin`, with the start token in front of each row that has none."""
        replaced: Any = super().get_text_with_replacements(text, *args, **kwargs)
        rows, replacements = replaced
        for index, row in enumerate(rows):
            if not (start := self._missing_start(row)):
                continue
            rows[index] = start + row
            for replacement in replacements[index]:
                replacement["new_span"] = tuple(place + len(start) for place in replacement["new_span"])
            # In this form the base class moves the spans of a chat template's turns along.
            inserted = {"span": (0, 0), "new_span": (0, len(start)), "text": "", "replacement": start}
            replacements[index].insert(0, {"type": "text", **inserted})
        return rows, replacements

    def _place_images(self, images, text: str | list[str] | None) -> list[str] | None:
        """Returns the rows of text, each image's `<image>` among them."""
        from transformers.image_utils import make_flat_list_of_images  # imports torchvision where that is installed

        num_images = 0 if images is None else len(cast(list, make_flat_list_of_images(images)))
        if text is None and num_images == 0:
            return None
        if not text and num_images:
            text = [self.render_prompt()] * num_images
        rows = [text or ""] if text is None or isinstance(text, str) else list(text)
        if placed := sum(row.count(self.image_token) for row in rows):
            if placed != num_images:
                raise ValueError(
                    f"The number of {self.image_token} tokens in the prompts should be the same as the number of "
                    f"images, and there are {placed} for {num_images} images."
                )
            if isinstance(images, (list, tuple)) and all(isinstance(own, (list, tuple)) for own in images):
                for number, (row, own) in enumerate(zip(rows, images, strict=False)):
                    if len(images) == len(rows) and row.count(self.image_token) != len(own):
                        raise ValueError(
                            f"Prompt {number} has {row.count(self.image_token)} {self.image_token} for its "
                            f"{len(own)} images."
                        )
            return rows
        if num_images == 0:
            return rows
        if len(rows) == 1:
            rows *= num_images
        if len(rows) != num_images:
            raise ValueError(
                f"{len(rows)} prompts for {num_images} images: give one prompt for all, one for each, or say with "
                f"{self.image_token} where the images go."
            )
        return [self.image_token + row for row in rows]

    def replace_image_token(self, image_inputs: dict, image_idx: int, **kwargs) -> str:
        """One `<image>` in the text becomes as many placeholders as the image has tokens."""
        return self.image_token * self.image_seq_length


class VectorProcessor(CaptionerProcessor):
    r"""
    The processor of a model without a vision tower: it wraps a tokenizer alone.

    `processor(image_features=vectors, return_tensors="pt")` gives what `generate` takes.

    Args:
        tokenizer, image_seq_length, start_token, image_token, chat_template, prompt, chat: as of
            [`CaptionerProcessor`]; an image is here an input that comes as vectors.
    """

    image_processor = None

    def __init__(
        self,
        tokenizer: Any = None,
        image_seq_length: int = 1,
        start_token: str | None = None,
        image_token: str = "<image>",
        chat_template: str | None = None,
        prompt: str = "",
        chat: bool = False,
        **kwargs,
    ):
        self._keep(tokenizer, image_seq_length, start_token, image_token, prompt, chat)
        ProcessorMixin.__init__(self, tokenizer, chat_template=chat_template, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """As of `CaptionerProcessor`, under its name: the Auto classes know one processor of a kind of model."""
        name = CaptionerProcessor.__name__
        auto_map = {"AutoProcessor": f"{__name__.rpartition('.')[2]}.{name}"}
        return super().to_dict() | {"processor_class": name, "auto_map": auto_map}

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, **kwargs):  # ty: ignore[incompatible-method-override]
        """Loads the processor from a folder or the Hub; see `ProcessorMixin.from_pretrained`."""
        kwargs["trust_remote_code"] = False
        return super(CaptionerProcessor, cls).from_pretrained(pretrained_model_name_or_path, **kwargs)

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs):
        """
        Args:
            images: none: there is no vision tower.
            text: a prompt for all inputs, or one for each; it stands behind the vectors, unless it says with `<image>`
                where they go. None, or an empty text: what the model was trained with.
            **kwargs: `image_features`, the vectors, float [I, N, D]; and as of the tokenizer (`return_tensors="pt"`,
                `padding=True`, …).

        Returns:
            `input_ids` and `attention_mask`, int64 [I, T], and `image_features` as they are. Without vectors, the
            text's tokens alone.

        Raises:
            ValueError: for pictures, or where prompts and vectors differ in number.
        """
        if images is not None:
            raise ValueError(
                "This captioner has no vision tower, and takes no pictures: pass vectors, as image_features."
            )
        vectors = kwargs.pop("image_features", None)
        if not text and vectors is not None:
            text = self.render_prompt()
        rows = [text or ""] if text is None or isinstance(text, str) else list(text)
        data = {}
        if vectors is not None:
            if len(rows) == 1:
                rows *= len(vectors)
            if len(rows) != len(vectors):
                raise ValueError(f"{len(rows)} prompts for {len(vectors)} inputs: give one for all, or one for each.")
            rows, data = [self._write_out(row) for row in rows], {"image_features": vectors}
        tensor_type = kwargs.pop("return_tensors", None)
        encoded = self.tokenizer(rows, add_special_tokens=False, **kwargs)
        return BatchFeature({**encoded, **data}, tensor_type=tensor_type)

    def _write_out(self, row: str) -> str:
        """A row with its start token and its input's placeholders."""
        row = row if self.image_token in row else self.image_token + row
        row = row.replace(self.image_token, self.image_token * self.image_seq_length)
        return self._missing_start(row) + row


__all__ = ["CaptionerProcessor", "VectorProcessor"]

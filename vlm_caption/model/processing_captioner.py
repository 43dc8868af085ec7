"""Turns pictures and text into the model's inputs: placeholders for the image tokens, start token, prompt.

This file travels with full checkpoints. The package `vlm_caption` adds what training needs, and opens images itself.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

from transformers import AutoImageProcessor, BatchFeature, ProcessorMixin

QUESTION = "{question}"

# Marks the place of the data's text while the markup around it is made. Unicode keeps this character for private use.
_SLOT = "\ue000"

# Goes before a chat template that writes today's date: the model must be asked as it was trained. The day is Llama's.
_ONE_DATE = "{%- macro strftime_now(format) -%}26 Jul 2024{%- endmacro -%}"

# Goes before a language model's chat template, which knows only text: the parts of a turn become one text.
_JOIN_PARTS = (
    "{%- set joined = namespace(messages=[]) -%}{%- for message in messages -%}{%- if message.content is string -%}"
    "{%- set joined.messages = joined.messages + [message] -%}{%- else -%}{%- set turn = namespace(text='') -%}"
    "{%- for part in message.content -%}{%- set turn.text = turn.text + (part.text if part.type == 'text' else "
    "'IMAGE_TOKEN') -%}{%- endfor -%}"
    "{%- set joined.messages = joined.messages + [dict(message, content=turn.text)] -%}{%- endif -%}{%- endfor -%}"
    "{%- set messages = joined.messages -%}"
)


class _Rendering(NamedTuple):
    """A prompt as text."""

    markup: list[str]  # the text before, between and after the texts of the data: questions, answers of examples
    asks: bool  # whether there is a question
    separator: str  # the space that belongs to an answer's first word, or nothing
    ending: str  # in a chat, the text that the template writes after an answer


class CaptionerProcessor(ProcessorMixin):
    r"""
    Wraps an image processor and a tokenizer.

    `processor(images=image)` asks for a caption in the way that the model was trained with, and
    `processor(images=image, text="A photo of")` for the rest of one. Text may place the image with `<image>`;
    otherwise the image comes first.

    Args:
        image_processor: Any image processor.
        tokenizer: The language model's tokenizer, with `image_token` added.
        image_seq_length (`int`): The number of placeholders for one image.
        start_token (`str`, *optional*): The token at position 0 of every input: the BOS or nothing.
        image_token (`str`): How a placeholder is written in text.
        chat_template (`str`, *optional*): See `ProcessorMixin`; by default the tokenizer's.
        prompt (`str`): The text around the image that the model was trained with: `<image>` marks the image (by
            default it comes first) and `{question}` a question. The answer follows.
        chat (`bool`): Whether the prompt is the user's turn in the chat template, and the answer the assistant's.
    """

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
    ):
        parts = {"image_processor": image_processor, "tokenizer": tokenizer}
        super().__init__(**{name: parts[name] for name in self.get_attributes()}, chat_template=chat_template)
        self.image_seq_length = image_seq_length
        self.start_token = start_token
        self.image_token = image_token
        self.image_token_id = tokenizer.convert_tokens_to_ids(image_token)
        self.prompt = prompt
        self.chat = chat
        tokenizer.padding_side = "left"  # a decoder continues each row at its right end

    def to_dict(self) -> dict[str, Any]:
        """Returns the settings, with the place of this code in checkpoints that carry it."""
        # The Auto classes know one processor for a kind of model, whose `from_pretrained` returns the right one.
        name = "CaptionerProcessor"
        auto_map = {"AutoProcessor": f"processing_captioner.{name}"}
        return super().to_dict() | {"processor_class": name, "auto_map": auto_map}

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]
        cls, pretrained_model_name_or_path, backend: str = "pil", **kwargs
    ):
        """Loads the processor as `ProcessorMixin` does; without a vision tower it is a [`VectorProcessor`].

        `backend` is that of `AutoImageProcessor`. It is Pillow by default, whether torchvision is installed or not,
        because the two differ in their pixels.
        """
        kwargs["trust_remote_code"] = False  # no part of a captioner's processor needs code of its own
        takes_pictures = "image_processor" in cls.get_attributes()
        settings, _ = cls.get_processor_dict(pretrained_model_name_or_path, **kwargs)
        if takes_pictures and settings and "image_processor" not in settings:
            return cls._vector_class().from_pretrained(pretrained_model_name_or_path, **kwargs)
        processor = super().from_pretrained(pretrained_model_name_or_path, **kwargs)
        if takes_pictures:  # not above, where `backend` would also go to the tokenizer
            processor.image_processor = AutoImageProcessor.from_pretrained(
                pretrained_model_name_or_path, backend=backend, **kwargs
            )
        return processor

    @classmethod
    def _vector_class(cls) -> Any:
        return VectorProcessor

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: A picture, a list of them, or a 4-D array or tensor, as the image processor takes them.
            text: A prompt for each row. Without `<image>` in it, each row gets one image in front; a single prompt
                is then repeated for all images. None or an empty text stands for the prompt of training. If images
                come in one list for each row, each list must fit the number of `<image>` in its row.
            **kwargs: Those of `ProcessorMixin.__call__` (`return_tensors="pt"`, `padding=True`, …).

        Returns:
            `input_ids` and `attention_mask`, int64 [B, T], and `pixel_values`, float [I, 3, H, W].
        """
        if images is not None:
            images = self._open_images(images, kwargs | kwargs.get("images_kwargs", {}))
        rows = self._place_images(images, text)
        kwargs.setdefault("add_special_tokens", False)  # `get_text_with_replacements` adds the start token
        return super().__call__(images=images, text=rows, **kwargs)

    def _open_images(self, images, settings: dict[str, Any]):
        return self.image_processor.fetch_images(images)

    def apply_chat_template(self, conversation, chat_template: str | None = None, **kwargs):  # ty: ignore[incompatible-method-override]
        """Applies the template as `ProcessorMixin` does, also a language model's, which knows nothing of images."""
        if chat_template is None:
            chat_template = self._language_template()
            if chat_template is not None and self.image_token not in chat_template:
                chat_template = _JOIN_PARTS.replace("IMAGE_TOKEN", self.image_token) + chat_template
        return super().apply_chat_template(conversation, chat_template=chat_template, **kwargs)

    def _language_template(self) -> str | None:
        templates: Any = self.chat_template or self.tokenizer.chat_template
        return templates.get("default") if isinstance(templates, dict) else templates

    def render_prompt(
        self, question: str | None = None, prompt: str = "", examples: Sequence[tuple[str | None, str]] = ()
    ) -> str:
        """Returns the text of a row up to its answer, with an `<image>` for each picture.

        Args:
            question: The text for `{question}`.
            prompt: A prompt instead of the processor's own.
            examples: The question (or None) and the answer for each image that is shown before the last one.

        Raises:
            ValueError: The prompt is wrong, or has a place for a question without a question, or the reverse.
        """
        return "".join(self._parts(self._render(prompt, len(examples)), [*examples, (question, "")]))

    def _parts(self, rendering: _Rendering, turns: Sequence[tuple[str | None, str]]) -> list[str]:
        """Returns markup and text of the data in turn: for each image its question, if there is one, and answer."""
        texts = []
        for number, (question, answer) in enumerate(turns, 1):
            if rendering.asks and not (question or "").strip():
                whose = "" if number == len(turns) else f" in example {number}"
                raise ValueError(f"The prompt has {QUESTION}, and there is no question to fill it{whose}: give one.")
            if not rendering.asks and question is not None:
                raise ValueError(f"There is no place for a question in the prompt: write {QUESTION} there.")
            texts += [cast(str, question).strip()] if rendering.asks else []
            texts += [rendering.separator + answer.strip()]
        parts = [rendering.markup[0]]
        for text, markup in zip(texts, rendering.markup[1:], strict=False):  # the last answer is not there yet
            parts += [text, markup]
        return parts

    def _render(self, prompt: str, examples: int) -> _Rendering:
        """Returns the markup of a prompt after this number of examples."""
        turn = self._with_image(prompt or self.prompt).replace(QUESTION, _SLOT)
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

    def _with_image(self, prompt: str) -> str:
        """Returns a prompt with its `<image>`, which comes first unless it is placed."""
        return prompt if self.image_token in prompt else self.image_token + prompt

    def _missing_start(self, row: str) -> str:
        """Returns the start token, or nothing if there is none or the row begins with it."""
        start = self.start_token or ""
        return "" if row.startswith(start) else start

    def get_text_with_replacements(self, text, *args, **kwargs):
        """Returns what `ProcessorMixin` does, with the start token in front of each row that has none."""
        replaced: Any = super().get_text_with_replacements(text, *args, **kwargs)
        rows, replacements = replaced
        for index, row in enumerate(rows):
            if not (start := self._missing_start(row)):
                continue
            rows[index] = start + row
            for replacement in replacements[index]:
                replacement["new_span"] = tuple(place + len(start) for place in replacement["new_span"])
            # In this form, the base class also moves the spans of a chat template's turns.
            inserted = {"span": (0, 0), "new_span": (0, len(start)), "text": "", "replacement": start}
            replacements[index].insert(0, {"type": "text", **inserted})
        return rows, replacements

    def _fill_empty(self, rows: list[str], num_images: int) -> list[str]:
        """Returns texts with the prompt of training instead of empty ones, and instead of none.

        It says where its image goes. A text beside it that does not has its image in front, as if it were alone.
        """
        if rows and all(rows):
            return rows
        if len(rows) < 2:
            rows = [""] * num_images
        alone = self.image_token if len(rows) == num_images else ""
        return [(row if self.image_token in row else alone + row) if row else self.render_prompt() for row in rows]

    def _place_images(self, images, text: str | list[str] | None) -> list[str] | None:
        """Returns the rows of text, with an `<image>` for each image."""
        from transformers.image_utils import make_flat_list_of_images  # imports torchvision where that is installed

        num_images = 0 if images is None else len(cast(list, make_flat_list_of_images(images)))
        if text is None and num_images == 0:
            return None
        rows = [text or ""] if text is None or isinstance(text, str) else list(text)
        if num_images:
            rows = self._fill_empty(rows, num_images)
        if placed := sum(row.count(self.image_token) for row in rows):
            if placed != num_images:
                raise ValueError(
                    f"The number of {self.image_token} tokens in the prompts should be the same as the number of "
                    f"images, and there are {placed} for {num_images} images."
                )
            in_rows = isinstance(images, (list, tuple)) and all(isinstance(own, (list, tuple)) for own in images)
            for number, own in enumerate(images if in_rows and len(images) == len(rows) else []):
                if (count := rows[number].count(self.image_token)) != len(own):
                    raise ValueError(f"Prompt {number} has {count} {self.image_token} for its {len(own)} images.")
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
        """Returns the text of one image: as many placeholders as it has tokens."""
        return self.image_token * self.image_seq_length


class VectorProcessor(CaptionerProcessor):
    r"""
    The processor of a model without a vision tower, which wraps only a tokenizer.

    `processor(image_features=vectors, return_tensors="pt")` returns the arguments of `generate`. The arguments
    are those of [`CaptionerProcessor`], where an image is an input in the form of vectors.
    """

    image_processor = None

    # A class of its own, because `ProcessorMixin` takes a processor's parts and settings from this signature.
    def __init__(
        self,
        tokenizer: Any = None,
        image_seq_length: int = 1,
        start_token: str | None = None,
        image_token: str = "<image>",
        chat_template: str | None = None,
        prompt: str = "",
        chat: bool = False,
    ):
        super().__init__(None, tokenizer, image_seq_length, start_token, image_token, chat_template, prompt, chat)

    def __call__(self, images: Any = None, text: str | list[str] | None = None, **kwargs: Any) -> BatchFeature:
        """
        Args:
            images: Must be None, as there is no vision tower.
            text: A prompt for all inputs, or one for each, see [`CaptionerProcessor`].
            **kwargs: `image_features`, the vectors, float [I, N, D]; and the tokenizer's (`return_tensors="pt"`,
                `padding=True`, …).

        Returns:
            `input_ids` and `attention_mask`, int64 [I, T], and `image_features` as they are. Without vectors, only
            the text's tokens.

        Raises:
            ValueError: There are pictures, or prompts and vectors differ in number.
        """
        if images is not None:
            raise ValueError("There is no vision tower, and this takes no pictures: pass vectors, as image_features.")
        vectors = kwargs.pop("image_features", None)
        rows = [text or ""] if text is None or isinstance(text, str) else list(text)
        data = {}
        if vectors is not None:
            rows = self._fill_empty(rows, len(vectors))
            if len(rows) == 1:
                rows *= len(vectors)
            if len(rows) != len(vectors):
                raise ValueError(f"{len(rows)} prompts for {len(vectors)} inputs: give one for all, or one for each.")
            data = {"image_features": vectors}
            rows = [row if self.image_token in row else self.image_token + row for row in rows]
            rows = [row.replace(self.image_token, self.image_token * self.image_seq_length) for row in rows]
            rows = [self._missing_start(row) + row for row in rows]
        tensor_type = kwargs.pop("return_tensors", None)
        encoded = self.tokenizer(rows, add_special_tokens=False, **kwargs)
        return BatchFeature({**encoded, **data}, tensor_type=tensor_type)


__all__ = ["CaptionerProcessor", "VectorProcessor"]

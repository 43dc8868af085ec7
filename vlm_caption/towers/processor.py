"""The processor as it is trained and used by the package: it also makes prompts of several questions and examples.

`vlm_caption/model/processing_captioner.py` holds what inference needs, and is copied into full checkpoints.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from PIL import Image
from tokenizers import AddedToken

from ..core.prompts import check_prompt
from ..images import opening
from ..images.limits import check_resized
from ..model import processing_captioner
from ..model.processing_captioner import QUESTION
from .configuration import CaptionerConfig


class CaptionerProcessor(processing_captioner.CaptionerProcessor):
    """Wraps an image processor and a tokenizer; see the class that it inherits from for the arguments.

    Its `open_image` is `vlm_caption.open_image`, which takes paths, URLs, bytes and arrays, puts transparency on white
    and scales deep pixels. The pipeline `image-text-to-text` opens paths and Pillow images itself (except those in a
    chat), in transformers' own way: it shows the colour behind transparency and makes 16-bit pictures white. Give it
    the pictures that `vlm_caption.open_image` returns.
    """

    open_image = staticmethod(opening.open_image)

    def picture_to_pixels(self, picture: Image.Image) -> torch.Tensor:
        """Returns the vision tower's input for a picture that `open_image` has opened, float [1, 3, H, W].

        Raises:
            MemoryError: See `check_resized`.
        """
        if shorter_side := dict(getattr(self.image_processor, "size", None) or {}).get("shortest_edge"):
            check_resized(*picture.size, shorter_side)
        return self.image_processor(picture, return_tensors="pt")["pixel_values"]

    @classmethod
    def from_config(
        cls, config: CaptionerConfig, image_processor: Any, tokenizer: Any, image_token: str = "<image>"
    ) -> Any:
        """Makes the processor of a model. The tokenizer is changed in place.

        Args:
            config: The model's.
            image_processor: The vision tower's; not used if the model has no vision tower.
            tokenizer: The language model's.
            image_token: How a placeholder is written in text.

        Returns:
            The processor; for a model without a vision tower, a [`VectorProcessor`].

        Raises:
            ValueError: The tokenizer knows `image_token` as something else, or has grown past the placeholder.
        """
        if image_token not in tokenizer.get_vocab():
            # Language models pad their embedding tables, and a tokenizer hands out ids in order; the placeholder's id
            # must come after the padding.
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
    def _vector_class(cls) -> Any:
        return VectorProcessor

    @property
    def end_token_id(self) -> int:
        """The token that ends an answer: the end token, or in a chat the end of the assistant's turn.

        Raises:
            ValueError: There is no chat template for a chat.
        """
        if self.chat:
            ids = self.tokenizer(self._render("", 0).ending, add_special_tokens=False).input_ids
            if ids and self.tokenizer.added_tokens_decoder.get(ids[0]) is not None:
                return ids[0]
        return self.tokenizer.eos_token_id

    def answer_separator(self, prompt: str = "") -> str:
        """Returns the text between a prompt and its answer, a space or nothing.

        It is tokenized with the answer: byte-pair tokenizers keep a word's space with the word.
        """
        return self._render(prompt, 0).separator

    def encode_prompts(
        self,
        questions: Sequence[str | None] = (None,),
        prompt: str = "",
        examples: Sequence[tuple[str | None, str]] = (),
    ) -> tuple[list[int], list[list[int]]]:
        """Returns the token ids of the prompt with each question.

        Questions and answers that look like special tokens are encoded as text.

        Args:
            questions: The texts for `{question}`, or None for a prompt without it.
            prompt: See `render_prompt`.
            examples: See `render_prompt`.

        Returns:
            The ids that are the same for all questions, from the start token to the last image's placeholders; and
            for each question the ids after them.

        Raises:
            ValueError: See `render_prompt`.
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
        # Each was tokenized after a placeholder, because some tokenizers treat the beginning of a text in another way.
        return head_ids, [ids[ids.index(self.image_token_id) + 1 :] for ids in tail_ids]

    def _tokenize(self, rows: list[list[str]]) -> list[list[int]]:
        """Returns the ids of rows of alternating markup and text; in one call, unless a text looks like markup."""
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

    def _open_images(self, images, settings: dict[str, Any]):
        """Opens images with `open_image`, except arrays and tensors that come with settings of their values."""
        is_array = hasattr(images, "ndim")
        if is_array and (settings.get("do_rescale") is False or settings.get("input_data_format") is not None):
            return images
        if isinstance(images, (list, tuple)) or (is_array and images.ndim > 3):
            return [self._open_images(image, settings) for image in images]
        return self.open_image(images)

    def _with_image(self, prompt: str) -> str:
        return check_prompt(prompt, self.image_token)


class VectorProcessor(CaptionerProcessor, processing_captioner.VectorProcessor):
    """The processor of a model without a vision tower; see the class that it inherits from for the arguments."""


__all__ = ["QUESTION", "CaptionerProcessor", "VectorProcessor", "check_prompt"]

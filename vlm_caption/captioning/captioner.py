"""Captions pictures and vectors with a checkpoint.

    captioner = Captioner.from_pretrained("checkpoints/embedded")
    [caption] = captioner.caption("photo.jpg")
    print(caption.text, caption.score)

`caption_each` captions any number of pictures, and continues after one that cannot be opened. `caption_vectors`
captions vectors from an encoder of any kind.
"""

import itertools
import logging
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image

from ..core.console import first_line_of, quiet_transformers
from ..core.errors import BackboneError, CheckpointError, ImageError
from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..images.opening import ImageSource
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.checks import check_checkpoint, check_processor, load_config
from ..towers.fingerprints import weights_fingerprint
from ..towers.processor import CaptionerProcessor
from .batches import (
    Example,
    Input,
    Limits,
    batched,
    caption_in_batches,
    caption_one_by_one,
    captions_only,
    check_batch_size,
    example_turns,
)
from .caption import Caption
from .checkpoints import DEFAULT_CHECKPOINT, find_checkpoint, find_device
from .confidence import Confidence
from .generation import GenerationSettings, generate, mean_log_probs, token_log_probs
from .inputs import is_vectors_file
from .prompts import NOT_AS_MANY, Prompt, Question, encode_prompts
from .signals import measure_signals, pooled, pooled_size

if TYPE_CHECKING:
    import huggingface_hub

    from ..data.vectors import Vectors

logger = logging.getLogger(__name__)

_Input = Input[torch.Tensor]


class Captioner:
    """A model and its processor.

    Args:
        model: The model; it is put in eval mode.
        processor: The model's processor.
        confidence: What tells how probably captions are right. Set the attribute to None to save its time.
    """

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        confidence: Confidence | None = None,
    ) -> None:
        self.model = model.eval()
        self.processor = processor
        self.confidence = confidence

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Captioner":
        """Loads a checkpoint and the towers that it names.

        Args:
            checkpoint: A folder or a Hub id.
            device: The device, such as "cuda:1". By default the first available one of "cuda", "mps" and "cpu".
            dtype: The dtype of the weights, by default as they were saved.

        Raises:
            CheckpointError: There is no such checkpoint, or it is damaged or of another model.
            BackboneError: One of its towers cannot be loaded, or is not the one it was trained with.
            ConfigError: The device cannot be used.
        """
        place = find_device(device)
        directory = find_checkpoint(checkpoint)
        settings: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        try:
            with quiet_transformers():
                check_checkpoint(directory)
                config = load_config(directory)
                processor = CaptionerProcessor.from_pretrained(directory)
                check_processor(processor, config, directory)
                model = CaptionerForConditionalGeneration.from_pretrained(directory, config=config, **settings)
                confidence = Confidence.load(directory, pooled_size(config))
                # Another dtype has another fingerprint.
                saved = model if confidence is None or dtype is None else _load_as_saved(directory)
        except BackboneError:
            raise
        except Exception as error:  # files of unknown origin, read by several libraries: errors of every kind
            raise CheckpointError(
                f"The checkpoint {str(checkpoint)!r} cannot be loaded: {first_line_of(error)}"
            ) from error
        if confidence is not None and confidence.weights != weights_fingerprint(saved):
            logger.warning(
                "The confidences of %s are of other weights and are not used: run scripts/calibrate.py", checkpoint
            )
            confidence = None
        return cls(model.to(place), processor, confidence)

    @cached_property
    def checkpoint(self) -> str:
        """An identifier of the trained weights: "sha256:" and 12 hex digits of their fingerprint."""
        return weights_fingerprint(self.model)[: len("sha256:") + 12]

    def check_vision_tower(self) -> None:
        """Checks that the captioner takes pictures.

        Raises:
            ValueError: It takes vectors.
        """
        if self.model.config.feature_size is not None:
            raise ValueError(
                "This captioner has no vision tower, and takes no pictures: give it vectors, with caption_vectors or "
                "caption.py --features FILE."
            )

    @property
    def prompt(self) -> str:
        """The default prompt."""
        return self.processor.prompt

    def push_to_hub(
        self,
        repo_id: str,
        full: bool = False,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload captioner",
    ) -> "huggingface_hub.CommitInfo":
        """Uploads model, processor and model card to the Hugging Face Hub in one commit.

        Args:
            repo_id: "org/name", or a name in the token's own namespace. The repository is created if it does not
                exist.
            full: Upload both towers too, and code that loads them where this package is not installed.
            private: Whether a new repository is private, by default as in the namespace.
            revision: The branch, which is created if it does not exist; by default "main".
            token: A token to use instead of the one that is logged in.
            commit_message: The commit's message.

        Returns:
            The commit: its `oid`, its `commit_url`.

        Raises:
            huggingface_hub.errors.HfHubHTTPError: The Hub refuses, for example because there is no token.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder, full=full)
            self.processor.save_pretrained(folder)
            return self.model.upload_checkpoint(
                folder, repo_id, private=private, revision=revision, token=token, commit_message=commit_message
            )

    def caption(self, images: ImageSource | Iterable[ImageSource], **settings: Any) -> list[Caption]:
        """Captions one or several pictures, and raises the error of the first one that cannot be opened.

        Args:
            images: What `open_image` takes, or an iterable of such.
            **settings: The other arguments of [`caption_each`].

        Returns:
            One caption for each picture, in order; a list also for a single one. With `num_return_sequences`, that
            many for each picture, one after the other.

        Raises:
            ImageError: A picture cannot be opened.
            ValueError: See `caption_each`.
        """
        return captions_only(self.caption_each(images, **settings))

    def caption_each(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        prompt: str | Sequence[str] = "",
        question: Question = None,
        examples: Sequence[Example] = (),
        batch_size: int = 8,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
        **generation: Any,
    ) -> Iterator[Caption | ImageError]:
        """Captions pictures one batch after the other, in order, with the memory of one batch.

        Args:
            images: What `open_image` takes, or an iterable of such, which is read only as far as needed.
            prompt: The text around the picture, which the caption continues; by default the prompt of training. The
                picture takes the place of `<image>`, or stands in front. With several, each picture gets a caption for
                each of them, and goes through the vision tower once.
            question: The text for the prompt's `{question}`: one for all pictures, or a sequence with an entry for
                each, which is a text, or several texts that are asked one after the other.
            examples: Pictures with their captions that the model sees before each picture ("few-shot"); if the prompt
                asks a question, pictures with a question and an answer.
            batch_size: The number of pictures at a time.
            max_pixels: The largest picture in pixels; see `open_image`.
            max_bytes: The largest file in bytes; see `open_image`.
            **generation: What transformers' `generate` takes, such as `num_beams`, `max_new_tokens`, `do_sample` and
                `num_return_sequences`, in place of the checkpoint's `generation_config.json`; and `stop`, `ban`,
                `max_words`, `seed`, `consensus`, `document_frequencies` and `datastore` of [`GenerationSettings`].

        Yields:
            A picture's caption, or the ImageError that says why it has none. With `num_return_sequences`, that many
            captions for each picture, one after the other; with several prompts or questions, so for each of them.

        Raises:
            ImageError: An example's picture cannot be opened.
            ValueError: A setting is out of range, the prompt is wrong or lacks its question, the number of questions
                is not that of the pictures, or the captioner takes vectors instead of pictures.
        """
        caption_batches = partial(
            self.caption_batches,
            prompt=prompt,
            question=question,
            examples=examples,
            max_pixels=max_pixels,
            max_bytes=max_bytes,
            **generation,
        )
        return caption_one_by_one(caption_batches, images, batch_size)

    def caption_batches(
        self,
        batches: Iterable[Sequence[ImageSource]],
        *,
        prompt: str | Sequence[str] = "",
        question: Question = None,
        examples: Sequence[Example] = (),
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
        **generation: Any,
    ) -> Iterator[list[list[Caption] | ImageError]]:
        """Captions batches of pictures that the caller has formed; see `caption_each`.

        Args:
            batches: The pictures that are captioned together, each batch a sequence.
            prompt: See `caption_each`.
            question: See `caption_each`.
            examples: See `caption_each`.
            max_pixels: See `caption_each`.
            max_bytes: See `caption_each`.
            **generation: See `caption_each`.

        Yields:
            For each batch a list with an entry for each picture: its captions, or the ImageError that says why it has
            none.

        Raises:
            ImageError, ValueError: See `caption_each`.
        """
        self.check_vision_tower()
        settings = GenerationSettings.from_arguments(generation)
        limits = Limits(max_pixels, max_bytes)
        prompts = self._encode_prompts(prompt, question, example_turns(examples))
        shown = self._encode_examples([image for image, *_ in examples], limits)

        def write(inputs: list[_Input]) -> list[list[Caption] | ImageError]:
            return self._encode_and_generate(inputs, shown, settings)

        return caption_in_batches(batches, prompts, limits, self._pixels, write)

    def caption_vectors(
        self,
        vectors: "Vectors | torch.Tensor | np.ndarray",
        *,
        prompt: str | Sequence[str] = "",
        question: Question = None,
        batch_size: int = 8,
        **generation: Any,
    ) -> Iterator[Caption]:
        """Captions inputs that come as vectors, one batch after the other, in order.

        Args:
            vectors: What `vlm_caption.data.open_vectors` returns; or numbers [inputs, D] or [inputs, N, D].
            prompt: See [`caption_each`].
            question: See [`caption_each`].
            batch_size: See [`caption_each`].
            **generation: See [`caption_each`].

        Yields:
            An input's caption, or several as by `caption_each`; its `image` is the row's name.

        Raises:
            ValueError: A setting is out of range, the prompt is wrong or lacks its question, the captioner was made
                for vectors of another shape, or a number in an array is not finite.
            DataError: A number in a file of vectors is not finite.
        """
        check_batch_size(batch_size)
        settings = GenerationSettings.from_arguments(generation)
        if not is_vectors_file(vectors):
            vectors = torch.as_tensor(vectors)
            vectors = vectors[:, None] if vectors.ndim == 2 else vectors
        self.check_vectors(vectors)
        if isinstance(vectors, torch.Tensor) and not vectors.isfinite().all():
            raise ValueError("A number in the vectors is not finite (NaN or infinite): correct it.")
        return self._caption_rows(vectors, self._encode_prompts(prompt, question), batch_size, settings)

    def check_vectors(self, vectors: "Vectors | torch.Tensor") -> None:
        """Checks that vectors [inputs, N, D] have the shape that the captioner was made for.

        Raises:
            ValueError: They have another.
        """
        config = self.model.config
        shape = (config.vision_seq_length, config.vision_feature_size)
        if tuple(vectors.shape[1:]) != shape:
            where = vectors.path if is_vectors_file(vectors) else "The input"
            raise ValueError(
                f"{where} has the shape {list(vectors.shape)}, and this captioner takes "
                f"[inputs, {shape[0]}, {shape[1]}]: give the vectors of the encoder that it was trained with."
            )

    def _caption_rows(
        self,
        vectors: "Vectors | torch.Tensor",
        prompts: Iterable[list[Prompt]],
        batch_size: int,
        settings: GenerationSettings,
    ) -> Iterator[Caption]:
        if len(vectors) and not isinstance(prompts, itertools.repeat) and len(list(prompts)) != len(vectors):
            raise ValueError(NOT_AS_MANY)
        pairs = zip(range(len(vectors)), prompts, strict=False)
        for batch in batched(pairs, batch_size):
            rows, asked = zip(*batch, strict=True)
            names = [vectors.name(row) if is_vectors_file(vectors) else str(row) for row in rows]
            yield from itertools.chain.from_iterable(
                self._generate(names, asked, vectors[rows[0] : rows[-1] + 1], settings)
            )

    def _encode_prompts(
        self,
        prompt: str | Sequence[str],
        question: Question,
        examples: Sequence[tuple[str | None, str]] = (),
    ) -> Iterable[list[Prompt]]:
        """Returns the prompts of each input: a list for each entry of `question`, or the same list without end."""

        def encode(asked: list[str | None], text: str) -> list[list[int]]:
            head, tails = self.processor.encode_prompts(asked, text, examples)
            return [head + tail for tail in tails]

        return encode_prompts(prompt, question, self.prompt, encode)

    @torch.inference_mode()
    def _encode_examples(self, images: list[ImageSource], limits: Limits) -> torch.Tensor | None:
        """Returns the vision tower's features of the examples, float [K, N, D_vision]; None without any."""
        if not images:
            return None
        shown = [self._pixels(limits.open(image)) for image in images]
        return self.model.core.encode_images(torch.cat(shown)).pooler_output

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        return self.processor.picture_to_pixels(image)

    def _encode_and_generate(
        self, inputs: list[_Input], shown: torch.Tensor | None, settings: GenerationSettings
    ) -> list[list[Caption] | ImageError]:
        """Returns the captions of each input. Inputs that do not fit into memory together are captioned in halves."""
        try:
            return list(self._encode(inputs, shown, settings))
        except (torch.OutOfMemoryError, MemoryError):
            if len(inputs) == 1:
                return [ImageError(inputs[0].image, "captioning it needs more memory than there is")]
        half = len(inputs) // 2
        return [
            captions
            for part in (inputs[:half], inputs[half:])
            for captions in self._encode_and_generate(part, shown, settings)
        ]

    @torch.inference_mode()
    def _encode(
        self, inputs: list[_Input], shown: torch.Tensor | None, settings: GenerationSettings
    ) -> list[list[Caption]]:
        pixel_values = torch.cat([entry.pixel_values for entry in inputs])  # [B, 3, H, W]
        # Encoded once, for generation and for scoring.
        features = self.model.core.encode_images(pixel_values).pooler_output  # [B, N, D_vision]
        if shown is not None:  # before each picture: [B · (K + 1), N, D_vision]
            features = torch.cat([shown.expand(len(features), *shown.shape), features[:, None]], dim=1).flatten(0, 1)
        return self._generate(
            [entry.image for entry in inputs], [entry.prompts for entry in inputs], features, settings
        )

    @torch.inference_mode()
    def _generate(
        self,
        names: list[str],
        prompts: Sequence[list[Prompt]],
        features: torch.Tensor,
        settings: GenerationSettings,
    ) -> list[list[Caption]]:
        """Returns the captions of each input; `features` float [I, N, D_vision], those of examples included."""
        if settings.seed is not None:  # each batch has its own seed, and keeps it when a job resumes
            seed = zlib.crc32(names[0].encode("utf-8", "surrogatepass"), settings.seed)
            settings = replace(settings, seed=seed)
        rows = [(place, prompt) for place, own in enumerate(prompts) for prompt in own]
        places = torch.tensor([place for place, _ in rows], device=features.device)
        by_row = features.unflatten(0, (len(names), -1))[places]  # [R, K + 1, N, D_vision]
        images = {"image_features": by_row.flatten(0, 1)}
        written = generate(self.model, self.processor, [prompt.input_ids for _, prompt in rows], images, settings)
        count = len(written.texts) // len(rows)
        repeated = by_row.repeat_interleave(count, dim=0)  # [R · count, K + 1, N, D_vision]
        log_probs = written.log_probs
        if log_probs is None:
            log_probs = token_log_probs(self.model, written, repeated.flatten(0, 1))
        scores = mean_log_probs(log_probs, written)
        confidences: Sequence[float | None] = [None] * len(scores)
        if self.confidence is not None:
            signals = measure_signals(self.model, self.processor, written, log_probs)
            confidences = self.confidence.measure(signals, pooled(repeated[:, -1]))
        captions: list[list[Caption]] = [[] for _ in names]
        for number, (place, prompt) in enumerate(row for row in rows for _ in range(count)):
            captions[place].append(
                Caption(
                    names[place],
                    written.texts[number],
                    scores[number],
                    written.finished[number],
                    prompt=prompt.name,
                    confidence=confidences[number],
                )
            )
        return captions


def _load_as_saved(directory: Path) -> CaptionerForConditionalGeneration:
    return CaptionerForConditionalGeneration.from_pretrained(directory, config=load_config(directory))


__all__ = ["DEFAULT_CHECKPOINT", "Caption", "Captioner"]

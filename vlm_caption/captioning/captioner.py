"""Pictures in, captions out.

    captioner = Captioner.from_pretrained("checkpoints/embedded")
    [caption] = captioner.caption("photo.jpg")
    print(caption.text, caption.score)

`caption_each` does the same for any number of pictures, and goes on after one that cannot be opened;
`caption_vectors` captions what an encoder of any kind has made of its inputs.
"""

import itertools
import json
import logging
import os
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import huggingface_hub
import numpy as np
import torch
from PIL import Image
from torch import nn

from ..core.console import first_line_of, quiet_transformers
from ..core.errors import BackboneError, CheckpointError, ImageError
from ..core.hub_ids import is_hub_id
from ..data.vectors import Vectors
from ..images.opening import MAX_BYTES, MAX_PIXELS, ImageSource, describe, open_image
from ..model.configuration_captioner import CaptionerConfig
from ..model.loss import IGNORE_INDEX
from ..model.processing_captioner import CaptionerProcessor
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.checks import check_checkpoint, check_processor, load_config

logger = logging.getLogger(__name__)

# Beside the package, in a clone of the repository.
DEFAULT_CHECKPOINT = Path(__file__).resolve().parents[2] / "checkpoints" / "embedded"


@dataclass(frozen=True)
class Caption:
    """One picture's caption.

    Attributes:
        image: The picture's path; for a picture without one, what it is; for vectors, the row's name.
        text: The caption in one line, without the prompt that it goes on from.
        score: The mean log-probability, in nats and at most 0, that the model gives the caption's tokens, the end
            token included if it came to one. It depends on nothing but the model, the picture, the prompt and the
            tokens: not on the number of beams, a length penalty or the rest of the batch.
    """

    image: str
    text: str
    score: float


@dataclass(frozen=True)
class _Input:
    """A picture made ready: its prompt's token ids, and `pixel_values` float [1, 3, H, W]."""

    image: str
    input_ids: list[int]
    pixel_values: torch.Tensor


# A picture and its caption; or a picture, a question about it, and the answer.
Example = tuple[ImageSource, str] | tuple[ImageSource, str, str]


class Captioner:
    """A model and its processor.

    Args:
        model: The model; it is put in eval mode.
        processor: The model's processor.
    """

    def __init__(self, model: CaptionerForConditionalGeneration, processor: CaptionerProcessor) -> None:
        self.model = model.eval()
        self.processor = processor

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        device: str | None = None,
        dtype: torch.dtype | None = None,
    ) -> "Captioner":
        """Load a checkpoint and the towers that it names.

        Args:
            checkpoint: A folder or a Hub id.
            device: Where to run, such as "cuda:1"; by default "cuda", "mps" or "cpu", the first that is there.
            dtype: Of the weights; by default as they were saved.

        Raises:
            CheckpointError: There is no such checkpoint, or it is damaged or of another model.
            BackboneError: One of its towers cannot be had, or is not the one it was trained with.
        """
        directory = _find_checkpoint(checkpoint)
        settings: dict[str, Any] = {} if dtype is None else {"dtype": dtype}
        try:
            with quiet_transformers():
                check_checkpoint(directory)
                config = load_config(directory)
                processor = CaptionerProcessor.from_pretrained(directory)
                check_processor(processor, config, directory)
                model = CaptionerForConditionalGeneration.from_pretrained(directory, config=config, **settings)
        except BackboneError:
            raise
        except Exception as error:  # files of unknown origin, read by several libraries: errors of every kind
            raise CheckpointError(
                f"The checkpoint {str(checkpoint)!r} cannot be loaded: {first_line_of(error)}"
            ) from error
        return cls(model.to(device or _default_device()), processor)

    def push_to_hub(
        self,
        repo_id: str,
        full: bool = False,
        *,
        private: bool | None = None,
        revision: str | None = None,
        token: str | bool | None = None,
        commit_message: str = "Upload captioner",
    ) -> huggingface_hub.CommitInfo:
        """Upload model, processor and model card to the Hugging Face Hub in one commit.

        Args:
            repo_id: "org/name", or a name in the token's own namespace; the repository is made if there is none.
            full: Upload both towers too, and code that loads them where this package is not installed.
            private: Whether a new repository is private; by default as the namespace has it.
            revision: The branch, made if there is none; by default "main".
            token: Instead of the one that is logged in.
            commit_message: The commit's.

        Returns:
            The commit: its `oid`, its `commit_url`.

        Raises:
            huggingface_hub.errors.HfHubHTTPError: The Hub refuses, for example for want of a token.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.model.save_pretrained(folder, full=full)
            self.processor.save_pretrained(folder)
            return self.model.upload_checkpoint(
                folder, repo_id, private=private, revision=revision, token=token, commit_message=commit_message
            )

    def caption(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        prompt: str = "",
        question: str | Sequence[str] | None = None,
        examples: Sequence[Example] = (),
        batch_size: int = 8,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
        **generate_kwargs: Any,
    ) -> list[Caption]:
        """Caption one picture or several; as of [`caption_each`], except that a bad picture ends it.

        Returns:
            One caption a picture, in order; a list also for a single one.

        Raises:
            ImageError: A picture cannot be opened.
            ValueError: As of `caption_each`.
        """
        captions = []
        for result in self.caption_each(
            images,
            prompt=prompt,
            question=question,
            examples=examples,
            batch_size=batch_size,
            num_beams=num_beams,
            max_new_tokens=max_new_tokens,
            max_pixels=max_pixels,
            max_bytes=max_bytes,
            **generate_kwargs,
        ):
            if isinstance(result, ImageError):
                raise result
            captions.append(result)
        return captions

    def caption_each(
        self,
        images: ImageSource | Iterable[ImageSource],
        *,
        prompt: str = "",
        question: str | Sequence[str] | None = None,
        examples: Sequence[Example] = (),
        batch_size: int = 8,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        max_pixels: int = MAX_PIXELS,
        max_bytes: int = MAX_BYTES,
        **generate_kwargs: Any,
    ) -> Iterator[Caption | ImageError]:
        """Caption pictures one batch after the other, in order, with the memory of one batch.

        Args:
            images: Anything that `open_image` takes, or an iterable of such, read only as far as needed.
            prompt: Text around the picture, `<image>` where it goes (in front, if that is not said); the caption goes
                on from it. By default as the model was trained.
            question: What fills the prompt's `{question}`, for all pictures; or one for each.
            examples: Pictures with their captions, shown to the model before each picture ("few-shot"); with a prompt
                that asks a question, pictures with question and answer.
            batch_size: Pictures at a time.
            num_beams, max_new_tokens: Instead of the settings in the checkpoint's `generation_config.json`.
            max_pixels, max_bytes: The limits of `open_image`.
            **generate_kwargs: Further settings of `generate`, likewise.

        Yields:
            A picture's caption, or the ImageError that says why it has none.

        Raises:
            ImageError: An example's picture cannot be opened.
            ValueError: A setting is out of range, the prompt is wrong or lacks its question, the questions are not as
                many as the pictures, or the captioner takes vectors and no pictures.
        """
        if self.model.config.feature_size is not None:
            raise ValueError(
                "This captioner has no vision tower, and takes no pictures: give it vectors, with caption_vectors or "
                "caption.py --features FILE."
            )
        settings = _checked_settings(
            batch_size, num_beams=num_beams, max_new_tokens=max_new_tokens, max_pixels=max_pixels, max_bytes=max_bytes
        )
        turns = [(rest[0] if len(rest) == 2 else None, rest[-1]) for _, *rest in examples]
        prompts = _pair(_as_iterable(images), self._encode_prompts(prompt, question, turns))
        inputs = (self._prepare(source, ids, max_pixels, max_bytes) for source, ids in prompts)
        shown = self._encode_examples([image for image, *_ in examples], max_pixels, max_bytes)
        return self._caption_batches(inputs, shown, batch_size, generate_kwargs | settings)

    def caption_vectors(
        self,
        vectors: Vectors | torch.Tensor | np.ndarray,
        *,
        prompt: str = "",
        question: str | Sequence[str] | None = None,
        batch_size: int = 8,
        num_beams: int | None = None,
        max_new_tokens: int | None = None,
        **generate_kwargs: Any,
    ) -> Iterator[Caption]:
        """Caption inputs that come as vectors, one batch after the other, in order.

        Args:
            vectors: As of `vlm_caption.data.open_vectors`; or numbers [inputs, D] or [inputs, N, D].
            prompt, question, batch_size, num_beams, max_new_tokens, **generate_kwargs: As of `caption_each`.

        Yields:
            An input's caption; its `image` is the row's name.

        Raises:
            ValueError: A setting is out of range, the prompt is wrong or lacks its question, the captioner was made
                for vectors of another shape, or a number in an array is not finite.
            DataError: A number in a file of vectors is not finite.
        """
        settings = _checked_settings(batch_size, num_beams=num_beams, max_new_tokens=max_new_tokens)
        if not isinstance(vectors, Vectors):
            vectors = torch.as_tensor(vectors)
            vectors = vectors[:, None] if vectors.ndim == 2 else vectors
        self.check_vectors(vectors)
        if isinstance(vectors, torch.Tensor) and not vectors.isfinite().all():
            raise ValueError("A number in the vectors is not finite (NaN or infinite): correct it.")
        return self._caption_rows(
            vectors, self._encode_prompts(prompt, question), batch_size, generate_kwargs | settings
        )

    def check_vectors(self, vectors: Vectors | torch.Tensor) -> None:
        """Sees that vectors [inputs, N, D] have the shape that the captioner was made for.

        Raises:
            ValueError: They have another.
        """
        config = self.model.config
        shape = (config.vision_seq_length, config.vision_feature_size)
        if tuple(vectors.shape[1:]) != shape:
            where = vectors.path if isinstance(vectors, Vectors) else "The input"
            raise ValueError(
                f"{where} has the shape {list(vectors.shape)}, and this captioner takes "
                f"[inputs, {shape[0]}, {shape[1]}]: give the vectors of the encoder that it was trained with."
            )

    def _caption_rows(
        self,
        vectors: Vectors | torch.Tensor,
        prompts: Iterable[list[int]],
        batch_size: int,
        generate_kwargs: dict[str, Any],
    ) -> Iterator[Caption]:
        pairs = _pair(range(len(vectors)), prompts)
        while batch := list(itertools.islice(pairs, batch_size)):
            rows, input_ids = zip(*batch, strict=True)
            names = [vectors.name(row) if isinstance(vectors, Vectors) else str(row) for row in rows]
            yield from self._generate(names, input_ids, vectors[rows[0] : rows[-1] + 1], generate_kwargs)

    def _encode_prompts(
        self,
        prompt: str,
        question: str | Sequence[str] | None,
        examples: Sequence[tuple[str | None, str]] = (),
    ) -> Iterable[list[int]]:
        """Token ids of what stands before each caption: one for each of several questions, else the same for ever."""
        one_for_all = question is None or isinstance(question, str)
        questions = cast(Sequence[str | None], [question] if one_for_all else question)
        head, tails = self.processor.encode_prompts(questions, prompt, examples)
        prompts = [head + tail for tail in tails]
        return itertools.repeat(prompts[0]) if one_for_all else prompts

    @torch.inference_mode()
    def _encode_examples(self, images: list[ImageSource], max_pixels: int, max_bytes: int) -> torch.Tensor | None:
        """What the vision tower says of the examples' pictures, float [K, N, D_vision]; None without any."""
        if not images:
            return None
        pixel_values = torch.cat([self._pixels(open_image(image, max_pixels, max_bytes)) for image in images])
        return self.model.core.encode_images(pixel_values).pooler_output

    def _caption_batches(
        self,
        inputs: Iterable[_Input | ImageError],
        shown: torch.Tensor | None,
        batch_size: int,
        generate_kwargs: dict[str, Any],
    ) -> Iterator[Caption | ImageError]:
        batch: list[_Input | ImageError] = []
        for entry in inputs:
            batch.append(entry)
            # An error waits only for the captions before it.
            if len(batch) == batch_size or isinstance(batch[0], ImageError):
                yield from self._caption_batch(batch, shown, generate_kwargs)
                batch = []
        yield from self._caption_batch(batch, shown, generate_kwargs)

    def _prepare(
        self, source: ImageSource, input_ids: list[int], max_pixels: int, max_bytes: int
    ) -> _Input | ImageError:
        # One picture at a time, so that no more than one is ever held in full size.
        try:
            image = open_image(source, max_pixels, max_bytes)
        except ImageError as error:
            return error.detached()
        return _Input(describe(source), input_ids, self._pixels(image))

    def _pixels(self, image: Image.Image) -> torch.Tensor:
        return self.processor.image_processor(image, return_tensors="pt")["pixel_values"]

    def _caption_batch(
        self, batch: list[_Input | ImageError], shown: torch.Tensor | None, generate_kwargs: dict[str, Any]
    ) -> Iterator[Caption | ImageError]:
        inputs = [entry for entry in batch if isinstance(entry, _Input)]
        captions = iter(self._encode_and_generate(inputs, shown, generate_kwargs) if inputs else [])
        for entry in batch:
            yield next(captions) if isinstance(entry, _Input) else entry

    @torch.inference_mode()
    def _encode_and_generate(
        self, inputs: list[_Input], shown: torch.Tensor | None, generate_kwargs: dict[str, Any]
    ) -> list[Caption]:
        pixel_values = torch.cat([entry.pixel_values for entry in inputs])  # [B, 3, H, W]
        # Encoded once, for the beams and for the scores.
        features = self.model.core.encode_images(pixel_values).pooler_output  # [B, N, D_vision]
        if shown is not None:  # before each picture: [B · (K + 1), N, D_vision]
            features = torch.cat([shown.expand(len(features), *shown.shape), features[:, None]], dim=1).flatten(0, 1)
        input_ids = [entry.input_ids for entry in inputs]
        return self._generate([entry.image for entry in inputs], input_ids, features, generate_kwargs)

    @torch.inference_mode()
    def _generate(
        self,
        names: list[str],
        input_ids: Sequence[list[int]],
        features: torch.Tensor,
        generate_kwargs: dict[str, Any],
    ) -> list[Caption]:
        """Captions of inputs of these names; `features` float [I, N, D_vision], those of examples among them."""
        prompts = self.processor.tokenizer.pad({"input_ids": list(input_ids)}, return_tensors="pt")  # on the left
        prompt_ids, mask = (prompts[name].to(self.model.device) for name in ("input_ids", "attention_mask"))  # [B, P]
        token_ids = self.model.generate(
            prompt_ids,
            attention_mask=mask,
            image_features=features,
            num_return_sequences=1,
            return_dict_in_generate=False,
            **generate_kwargs,
        )  # [B, P + M], short rows padded on the right
        new_ids = token_ids[:, prompt_ids.shape[1] :]
        scores = self._scores(token_ids, new_ids, mask, features)
        texts = self.processor.batch_decode(new_ids, skip_special_tokens=True)
        return [
            Caption(name, " ".join(text.split()), score)
            for name, text, score in zip(names, texts, scores, strict=True)
        ]

    def _scores(
        self, token_ids: torch.Tensor, new_ids: torch.Tensor, mask: torch.Tensor, features: torch.Tensor
    ) -> list[float]:
        """The mean log-probability of each row's `new_ids` (int64 [B, M], the end of `token_ids`), padding aside."""
        places: dict[str, torch.Tensor] = {}
        if not mask.all():  # prompts of different lengths, padded on the left
            mask = nn.functional.pad(mask, (0, new_ids.shape[1] - 1), value=1)
            places = {"attention_mask": mask, "position_ids": (mask.cumsum(dim=1) - 1).clamp_min(0)}
        logits = self.model(
            input_ids=token_ids[:, :-1],
            image_features=features,
            logits_to_keep=new_ids.shape[1],
            use_cache=False,
            **places,
        ).logits  # [B, M, V]; padding on the right stands where nothing before it looks
        settings = self.model.generation_config
        end_ids = settings.eos_token_id if isinstance(settings.eos_token_id, list) else [settings.eos_token_id]
        is_end = torch.isin(new_ids, torch.tensor(end_ids, device=new_ids.device))
        is_padding = is_end.cumsum(dim=1) > is_end  # behind the first end token
        if settings.pad_token_id not in end_ids:
            is_padding |= new_ids == settings.pad_token_id
        targets = new_ids.masked_fill(is_padding, IGNORE_INDEX)
        losses = nn.functional.cross_entropy(
            logits.float().transpose(1, 2), targets, ignore_index=IGNORE_INDEX, reduction="none"
        )  # [B, M]
        return (-losses.sum(dim=1) / (~is_padding).sum(dim=1).clamp_min(1)).tolist()


def _checked_settings(batch_size: int, **settings: int | None) -> dict[str, int]:
    """Those of `generate` among the settings that are given.

    Raises:
        ValueError: One is below 1.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    for name, value in {"batch_size": batch_size, **given}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    return {name: value for name, value in given.items() if name in ("num_beams", "max_new_tokens")}


def _as_iterable(images: Any) -> Iterable[ImageSource]:
    single = isinstance(images, (str, os.PathLike, bytes, Image.Image, np.ndarray, torch.Tensor)) or hasattr(
        images, "read"
    )
    return [images] if single else images


def _pair(sources: Iterable[Any], prompts: Iterable[list[int]]) -> Iterator[tuple[Any, list[int]]]:
    """Each input with its prompt; `itertools.repeat` is one for all."""
    if isinstance(prompts, itertools.repeat):
        yield from zip(sources, prompts, strict=False)
        return
    for source, prompt in itertools.zip_longest(sources, prompts):
        if source is None or prompt is None:
            raise ValueError("There are not as many questions as inputs: give one for all, or one for each.")
        yield source, prompt


def _default_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _find_checkpoint(checkpoint: str | os.PathLike) -> Path:
    """The local folder of a checkpoint, fetched where `checkpoint` is a Hub id.

    Raises:
        CheckpointError: There is none, or it is of another model.
    """
    name = os.fspath(checkpoint)
    directory = Path(name).expanduser()
    if not directory.is_dir():
        directory = _fetch_checkpoint(name)
    config_file = directory / "config.json"
    try:
        model_type = json.loads(config_file.read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError as error:
        raise CheckpointError(f"The folder {name!r} is no checkpoint: it holds no config.json.") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"The checkpoint {name!r} has a damaged config.json ({first_line_of(error)})."
        ) from error
    if model_type != CaptionerConfig.model_type:
        raise CheckpointError(f"The checkpoint {name!r} is of a {model_type!r} model, not of a captioner.")
    return directory


def _fetch_checkpoint(name: str) -> Path:
    if not is_hub_id(name):
        raise CheckpointError(
            f"There is no checkpoint {name!r}: give the folder of one, or a Hub id such as 'org/name'."
        )
    logger.info("Fetching the checkpoint %s from the Hugging Face Hub", name)
    try:
        with quiet_transformers():
            return Path(huggingface_hub.snapshot_download(name, ignore_patterns=["*.bin", "*.msgpack", "*.h5"]))
    except Exception as error:  # the Hub client lets through the errors of its HTTP library, which differs by version
        raise CheckpointError(
            f"There is no folder {name!r}, and fetching it from the Hugging Face Hub failed ({first_line_of(error)}): "
            "check the name and the network."
        ) from error


__all__ = ["DEFAULT_CHECKPOINT", "Caption", "Captioner"]

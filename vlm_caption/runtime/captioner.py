"""Captions pictures with an exported captioner.

captioner = Captioner.from_pretrained("exported")
[caption] = captioner.caption("photo.jpg")
print(caption.text, caption.score)
"""

import itertools
import os
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tokenizers import Tokenizer

from ..captioning.batches import (
    Example,
    Input,
    Limits,
    caption_in_batches,
    caption_one_by_one,
    captions_only,
    example_turns,
)
from ..captioning.caption import Caption, cut, first_place
from ..captioning.confidence import Confidence, caption_signals
from ..captioning.consensus import checkpoint_frequencies
from ..captioning.datastore import VectorKind
from ..captioning.decoding import Written, write
from ..captioning.prompts import Prompt, Question, encode_prompts
from ..captioning.rules import DecodingSettings
from ..core.console import first_line_of
from ..core.errors import CheckpointError, ImageError
from ..core.prompts import QUESTION
from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..images.opening import ImageSource
from .files import LANGUAGE, TOKENIZER, VISION, ExportSettings, read_settings
from .graphs import LanguageGraph, VisionGraph
from .pixels import PixelSettings, to_pixels
from .prompts import PromptEncoder, PromptSettings

_Input = Input[np.ndarray]


@dataclass(frozen=True)
class _Finished:
    """A caption, and what its confidence is computed from.

    Attributes:
        caption: The caption.
        place: The place of its picture in the batch.
        prompt: The token ids of its prompt.
        ids: Its tokens [M].
        log_probs: Their log-probabilities, float [M], 0 where they do not count.
        is_caption: Which of them count, bool [M].
    """

    caption: Caption
    place: int
    prompt: Sequence[int]
    ids: list[int]
    log_probs: np.ndarray
    is_caption: np.ndarray


class Captioner:
    """An exported captioner. It has the methods of `vlm_caption.Captioner` that caption pictures.

    Args:
        folder: The folder that `vlm-caption export` wrote.
        settings: Its `captioner.json`.
        threads: The number of threads; by default one a core.

    Attributes:
        checkpoint: An identifier of the weights and their precision.
        prompt: The default prompt.
        confidence: What tells how probably captions are right; None if the export has none. Set it to None to save its
            time.
    """

    def __init__(self, folder: Path, settings: ExportSettings, threads: int | None = None) -> None:
        self.checkpoint = settings.checkpoint
        self._folder = folder
        self._tokenizer = Tokenizer.from_file(str(folder / TOKENIZER))
        self._pixels = PixelSettings(**settings.pixels)
        self._prompts = PromptEncoder(self._tokenizer, PromptSettings(**settings.prompt))
        self._decoding = DecodingSettings(**settings.generation)
        self._positions = settings.positions
        vectors = dict(settings.vectors)
        self._vectors_start = int(vectors.pop("start"))
        self._vectors = VectorKind(**vectors)
        self._vision = VisionGraph(folder / VISION, threads)
        self.confidence = Confidence.load(folder, self._vision.pooled_size)
        self._language = LanguageGraph(folder / LANGUAGE, threads, settings.cache)
        self.prompt = QUESTION.join(self._prompts.settings.markup)

    @classmethod
    def from_pretrained(cls, checkpoint: str | os.PathLike, threads: int | None = None) -> "Captioner":
        """Loads an exported captioner.

        Args:
            checkpoint: Its folder.
            threads: The number of threads; by default one a core.

        Raises:
            CheckpointError: The folder is no export, or is damaged.
        """
        folder = Path(checkpoint).expanduser()
        settings = read_settings(folder)
        try:
            return cls(folder, settings, threads)
        except CheckpointError:
            raise
        except Exception as error:  # files of unknown origin, read by several libraries: errors of every kind
            raise CheckpointError(f"The export {str(folder)!r} cannot be loaded: {first_line_of(error)}") from error

    def caption(self, images: ImageSource | Iterable[ImageSource], **settings: Any) -> list[Caption]:
        """Captions one or several pictures, and raises the error of the first one that cannot be opened.

        Args:
            images: What `open_image` takes, or an iterable of such.
            **settings: The other arguments of [`caption_each`].

        Returns:
            One caption for each picture, in order; a list also for a single one. With `num_return_sequences`, that
            many for each picture, one after the other; with several prompts or questions, so for each of them.

        Raises:
            ImageError: A picture cannot be opened.
            ValueError: See `caption_each`.
        """
        return captions_only(self.caption_each(images, **settings))

    def caption_each(
        self, images: ImageSource | Iterable[ImageSource], *, batch_size: int = 8, **settings: Any
    ) -> Iterator[Caption | ImageError]:
        """Captions pictures one batch after the other, in order, with the memory of one batch.

        Args:
            images: What `open_image` takes, or an iterable of such, which is read only as far as needed.
            batch_size: The number of pictures at a time.
            **settings: The other arguments of [`caption_batches`].

        Yields:
            A picture's caption, or the ImageError that says why it has none. With `num_return_sequences`, that many
            captions for each picture, one after the other; with several prompts or questions, so for each of them.

        Raises:
            ImageError, ValueError: See `caption_batches`.
        """
        return caption_one_by_one(partial(self.caption_batches, **settings), images, batch_size)

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
        """Captions batches of pictures that the caller has formed.

        Args:
            batches: The pictures that are captioned together, each batch a sequence.
            prompt: The text around the picture, which the caption continues; by default the prompt of training. With
                several, each picture gets a caption for each of them, and goes through the vision tower once.
            question: The text for the prompt's `{question}`: one for all pictures, or a sequence with an entry for
                each, which is a text, or several texts that are asked one after the other.
            examples: Pictures with their captions that the model sees before each picture; if the prompt asks a
                question, pictures with a question and an answer.
            max_pixels: A picture with more pixels is not decoded.
            max_bytes: A picture whose file has more bytes is not read.
            **generation: Settings of [`DecodingSettings`], in place of those of the checkpoint.

        Yields:
            For each batch a list with an entry for each picture: its captions, or the ImageError that says why it has
            none.

        Raises:
            ImageError: An example's picture cannot be opened.
            ConfigError, DataError: The export has no document frequencies for a consensus, or the datastore cannot be
                used.
            ValueError: A setting is unknown or out of range, the prompt is wrong or lacks its question, or the number
                of questions is not that of the pictures.
        """
        limits = Limits(max_pixels, max_bytes)
        settings = self._complete(generation)
        turns = example_turns(examples)

        def encode(asked: list[str | None], text: str) -> list[list[int]]:
            return [self._prompts.encode(words, text, turns) for words in asked]

        prompts = encode_prompts(prompt, question, self.prompt, encode)
        for own in itertools.islice(prompts, 1) if isinstance(prompts, itertools.repeat) else prompts:
            for each in own:
                self._check_length(len(each.input_ids), len(turns) + 1, settings)
        shown = [self._to_pixels(limits.open(image)) for image, *_ in examples]
        shown_embeds = self._vision.run(np.concatenate(shown))[0] if shown else None

        def write_captions(inputs: list[_Input]) -> list[list[Caption]]:
            return self._caption_inputs(inputs, shown_embeds, settings)

        return caption_in_batches(batches, prompts, limits, self._to_pixels, write_captions)

    def _to_pixels(self, image: Image.Image) -> np.ndarray:
        return to_pixels(image, self._pixels)

    def _complete(self, generation: dict[str, Any]) -> DecodingSettings:
        """Returns the settings of a call, with the tokens of banned words."""
        settings = self._decoding.updated(generation)
        if settings.consensus is not None and settings.document_frequencies is None:
            checkpoint_frequencies(str(self._folder))  # says at once if there are none
        spellings = [spelling for word in settings.ban for spelling in (word.strip(), " " + word.strip())]
        banned = [self._tokenizer.encode(spelling, add_special_tokens=False).ids for spelling in spellings]
        return replace(settings, bad_words_ids=[*settings.bad_words_ids, *filter(None, banned)])

    def _check_length(self, length: int, images: int, settings: DecodingSettings) -> None:
        if self._positions is None:
            return
        limit = self._positions["all"] - images * self._positions["an_image"]
        if length + settings.max_new_tokens > limit:
            raise ValueError(
                f"{length} prompt tokens (image tokens included) and up to {settings.max_new_tokens} new ones exceed "
                f"the {limit} positions of the language model: lower max_new_tokens or shorten the prompt."
            )

    def _caption_inputs(
        self, inputs: list[_Input], shown: np.ndarray | None, settings: DecodingSettings
    ) -> list[list[Caption]]:
        """Returns the captions of each input; `shown` are the examples' image tokens, float [E, N, D]."""
        embeds, pooled = self._vision.run(np.concatenate([entry.pixel_values for entry in inputs]))
        embeds = embeds[:, None]  # [I, 1, N, D]
        if shown is not None:  # before each picture: [I, E + 1, N, D]
            embeds = np.concatenate([np.broadcast_to(shown, (len(embeds), *shown.shape)), embeds], axis=1)
        seed = settings.seed
        if seed is not None:  # each batch has its own seed, and keeps it when a job resumes
            seed = zlib.crc32(inputs[0].image.encode("utf-8", "surrogatepass"), seed)
        asked = [(place, prompt) for place, entry in enumerate(inputs) for prompt in entry.prompts]
        images = np.concatenate([embeds[place] for place, _ in asked])
        rows = self._language.start([prompt.input_ids for _, prompt in asked], images)
        written = write(rows, len(asked), settings, np.random.default_rng(seed))
        references = self._references(pooled, settings)
        found: list[_Finished] = []
        for (place, prompt), sequences in zip(asked, written, strict=True):
            own = [self._finish(inputs[place].image, prompt, place, sequence, settings) for sequence in sequences]
            found += self._agreed(own, references[place], settings)
        captions: list[list[Caption]] = [[] for _ in inputs]
        for own, confidence in zip(found, self._measure_confidence(found, pooled), strict=True):
            captions[own.place].append(replace(own.caption, confidence=confidence))
        return captions

    def _references(self, pooled: np.ndarray, settings: DecodingSettings) -> list[list[str]]:
        """Returns the captions of similar pictures for each input, none without a datastore.

        Args:
            pooled: The inputs' pooled features, float [I, D_pooled].
            settings: The settings.
        """
        if settings.datastore is None:
            return [[] for _ in pooled]
        start, kind = self._vectors_start, self._vectors
        return settings.datastore.references(kind, pooled[:, start : start + kind.size])

    def _agreed(
        self, found: list["_Finished"], references: Sequence[str], settings: DecodingSettings
    ) -> list["_Finished"]:
        """Returns the captions of a prompt, or for a consensus those that agree most.

        Args:
            found: The captions.
            references: What each is compared with; if there are none, the other captions.
            settings: The settings.
        """
        if settings.consensus is None:
            return found
        frequencies = settings.document_frequencies or checkpoint_frequencies(str(self._folder))
        places = frequencies.rank([own.caption.text for own in found], references)
        return [found[place] for place in places[: settings.num_return_sequences]]

    def _finish(
        self, image: str, prompt: Prompt, place: int, written: Written, settings: DecodingSettings
    ) -> "_Finished":
        """Returns a caption, cut where the settings say so, and its score."""
        text, count = self._decode(written.ids), len(written.ids)
        finished = written.ids[-1] in settings.eos_token_id
        if shortened := cut(text, settings.stop, settings.max_words):
            starts = [self._decode(written.ids[:length]) for length in range(1, count + 1)]
            count = first_place(starts, lambda start: cut(start, settings.stop, settings.max_words) is not None)
            text, finished = shortened
        pad = None if settings.pad_token_id in settings.eos_token_id else settings.pad_token_id
        ids = written.ids[:count]
        is_caption = np.array([token != pad for token in ids], bool)
        log_probs = np.array(written.log_probs[:count]) * is_caption
        score = float(log_probs.sum()) / max(int(is_caption.sum()), 1)
        caption = Caption(image, " ".join(text.split()), score, finished, prompt=prompt.name)
        return _Finished(caption, place, prompt.input_ids, ids, log_probs, is_caption)

    def _measure_confidence(self, found: list["_Finished"], pooled: np.ndarray) -> Sequence[float | None]:
        """Returns the confidence of each caption; `pooled` float [I, D_pooled], those of the inputs."""
        if self.confidence is None:
            return [None] * len(found)
        prompts = [self._prompts.without_images(own.prompt) for own in found]
        prior = self._language.log_probs(prompts, [own.ids for own in found])
        columns = [
            [own.log_probs for own in found],
            [numbers * own.is_caption for numbers, own in zip(prior, found, strict=True)],
            [own.is_caption for own in found],
        ]
        width = max(1, *(len(own.ids) for own in found))  # captions that are cut at once have no tokens
        padded = [np.stack([np.pad(row, (0, width - len(row))) for row in column]) for column in columns]
        return self.confidence.measure(caption_signals(*padded), pooled[[own.place for own in found]])

    def _decode(self, ids: list[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=True)


__all__ = ["Captioner", "DecodingSettings"]

"""What is in a corpus and what is wrong with it, before any time is spent on training.

    inspection = inspect_data(open_data(config.data), config.data)
    print(inspection)
    write_contact_sheet("sheet.html", inspection)

Every caption is measured and every picture opened as in training, so what is found here is what training would meet.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config.sections import DataSection
from ..core.console import quiet_transformers
from ..core.errors import BackboneError, DataError
from ..data.corpora import Corpora
from ..data.corpus import Corpus
from ..data.places import open_place
from ..data.readers.text_files import shared_texts
from ..data.records import Problem
from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..images.opening import ImageSource
from ..pages.gallery import write_gallery
from ..towers.sources import resolve_backbone
from ..towers.tokenizers import new_tokenizer
from .captions import find_common, find_line_breaks, measure_captions
from .facts import Facts, Spread
from .pictures import Pictures, find_copies, find_same_names, find_unmentioned
from .refusals import find_refusals
from .result import Finding, Inspection
from .tally import count_facts

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*")


def inspect_data(
    corpus: Corpus | Corpora,
    settings: DataSection | None = None,
    eval_images: int = 200,
    tokenizer: PreTrainedTokenizerBase | None = None,
    no_tokens: str = "no tokenizer was given",
) -> Inspection:
    """Looks at every caption and opens every picture of a corpus.

    Opening the pictures takes most of the time, on all cores. The memory is that of one picture for each core, and
    about 100 bytes for each image.

    Args:
        corpus: The corpus, or several; see `open_data`.
        settings: The settings of training: limits, splits, what to do with bad pictures.
        eval_images: How many images of the dev split training uses.
        tokenizer: The language model's tokenizer; see `local_tokenizer`.
        no_tokens: Why there is no tokenizer.

    Raises:
        DataError: The corpus cannot be read at all.
    """
    settings = settings or DataSection()
    parts = corpus.corpora if isinstance(corpus, Corpora) else [corpus]
    datasets, missing = _load_splits(corpus, parts[0].source.features, settings)
    tallies, odd, cut = measure_captions(datasets, settings, tokenizer)
    pictures = Pictures.open_all(datasets, tallies, settings)
    odd += find_line_breaks(itertools.chain.from_iterable(part.records() for part in parts), datasets)
    problems = list(corpus.problems())
    refusals, changes = find_refusals(corpus, settings, eval_images, pictures.errors)
    lost, longest = [missing, pictures.unreadable], settings.max_caption_tokens
    return Inspection(
        path=", ".join(str(part.source.path) for part in parts),
        format=corpus.format,
        splits={split: count_facts({split: tally}, lost, longest) for split, tally in tallies.items()},
        all=count_facts(tallies, lost, longest),
        dropped=corpus.dropped,
        max_caption_tokens=longest,
        no_tokens=no_tokens if tokenizer is None else None,
        problems=problems,
        missing=missing,
        unreadable=pictures.unreadable,
        same_bytes=find_copies(datasets, tallies),
        common_captions=find_common(datasets, tallies),
        small=pictures.small,
        elongated=pictures.elongated,
        odd_captions=odd,
        cut_captions=cut,
        without_caption=[] if settings.limit else find_unmentioned(datasets, problems),
        same_names=find_same_names(datasets),
        shared_texts=_find_shared_texts(parts),
        refusal=refusals[0] if refusals else None,
        later_refusals=refusals[1:],
        changes=changes,
        datasets=pictures.readable,
    )


def local_tokenizer(
    language: str | dict, revision: str | None = None, tokenizer_name: str | None = None
) -> PreTrainedTokenizerBase:
    """Returns the tokenizer that training would use for a language model, if it is on this machine.

    For "characters", it is a tokenizer without a vocabulary, which splits text as the one made of the captions does.

    Args:
        language: See `compose`.
        revision: The `language_revision` of `compose`.
        tokenizer_name: The `tokenizer` of `compose`.

    Raises:
        BackboneError: It is not on this machine, cannot be read, or is only made by training.
    """
    if isinstance(language, dict):
        if tokenizer_name == "subwords":
            raise BackboneError("The tokens of 'subwords' are learned from the captions when training begins.")
        if tokenizer_name in (None, "bytes", "characters"):
            return new_tokenizer(tokenizer_name or "bytes", captions=())
        language = tokenizer_name
    directory = resolve_backbone(language, revision, fetch=False)
    if not any(found for pattern in _TOKENIZER_FILES for found in directory.glob(pattern)):
        # transformers would make one that knows no words.
        raise BackboneError(f"{language!r} has no tokenizer in {directory}.")
    try:
        with quiet_transformers():
            tokenizer: Any = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    except (OSError, ValueError) as error:
        raise BackboneError(f"The tokenizer of {language!r} in {directory} cannot be read ({error}).") from error
    return tokenizer


def write_contact_sheet(
    path: str | PathLike,
    inspection: Inspection,
    samples: int = 24,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Writes an HTML page of random images, each with a random one of its captions.

    Args:
        path: The page.
        inspection: The inspection of the corpus.
        samples: The largest number of images.
        seed: The seed that selects images and captions.
        max_pixels: The largest picture to open; see `open_image`.
        max_bytes: The largest file to open; see `open_image`.

    Raises:
        ImageError: A picture can no longer be opened.
        OSError: The page cannot be written.
    """
    draw = random.Random(seed)
    rows = [(split, row) for split, dataset in inspection.datasets.items() for row in range(len(dataset))]
    chosen = sorted(draw.sample(range(len(rows)), min(samples, len(rows))))

    def entries() -> Iterator[tuple[ImageSource, str]]:
        for split, row in (rows[index] for index in chosen):
            pair = inspection.datasets[split][row]
            yield open_place(pair["image"], max_bytes), draw.choice(pair["captions"])

    note = (
        f"{len(chosen):,} of {len(rows):,} images, each with one of its captions, chosen at random (seed {seed}). "
        "Does each caption describe its image?"
    )
    title = f"{Path(inspection.path).name or inspection.path}: contact sheet"
    write_gallery(path, entries(), title, note, is_sheet=True, max_pixels=max_pixels, max_bytes=max_bytes)


def _load_splits(
    corpus: Corpus | Corpora, features: Path | None, settings: DataSection
) -> tuple[dict[str, Dataset], list[Finding]]:
    """Loads all splits of a corpus of pictures. Returns them and the missing images.

    Args:
        corpus: The corpus.
        features: The file of vectors that it has instead of pictures, if it has one.
        settings: The settings of training.

    Raises:
        DataError: The corpus has vectors instead of pictures, or cannot be read at all.
    """
    if features is not None:
        raise DataError(
            f"{features}: its rows are vectors, and this looks at pictures: training checks every number before it "
            "begins"
        )
    if not corpus.splits:
        corpus.load(settings.train_split)  # says what is wrong
    missing: list[Finding] = []

    def miss(problem: Problem) -> None:
        missing.append(Finding(problem.split or "", problem.where, problem.reason))

    datasets = {
        split: corpus.load(split, settings.limit, on_problem=lambda problem: None, on_missing=miss)
        for split in corpus.splits
    }
    return datasets, missing


def _find_shared_texts(parts: Sequence[Corpus]) -> dict[str, list[str]]:
    """Returns the pictures that have their captions from one text file, by that file."""
    return {
        str(text): list(map(str, images))
        for part in parts
        if part.format == "text_files"
        for text, images in shared_texts(part.source.path)
    }


__all__ = ["Facts", "Finding", "Inspection", "Spread", "inspect_data", "local_tokenizer", "write_contact_sheet"]

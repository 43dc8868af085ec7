"""What is in a corpus and what is wrong with it, before any time is spent on training.

    inspection = inspect_data(open_data(config.data), config.data)
    print(inspection)
    write_contact_sheet("sheet.html", inspection)

Every caption is measured and every picture opened as in training, so what is found here is what training would meet.
"""

import dataclasses
import hashlib
import random
import re
import unicodedata
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from ..config.sections import DataSection
from ..core.console import printable, progress, quiet_transformers
from ..core.errors import BackboneError, DataError, ImageError
from ..core.text import preview
from ..core.threads import map_in_threads
from ..data.captions import count_words
from ..data.corpora import Corpora
from ..data.corpus import Corpus, drop_rows
from ..data.opening import bad_images, check_left, load_splits
from ..data.places import NamedBytes, Place, open_place
from ..data.readers.text_files import shared_texts
from ..data.records import Problem, Record
from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..images.opening import IMAGE_SUFFIXES, ImageSource, open_image
from ..pages.gallery import write_gallery
from ..towers.sources import resolve_backbone
from ..towers.tokenizers import new_tokenizer

# Pictures with a shorter side than this (pixels), or a longer side of more times the shorter one, are listed.
SMALL_SIDE = 64
LONG_SIDES = 4

_TOKENIZER_FILES = ("tokenizer.json", "*.model", "vocab.*")

# Captions of so many words are listed if they are also so many times as long as the median.
_LONG_WORDS = 40
_LONG_MEDIANS = 5

# Texts that tools write where there is no caption.
_NO_CAPTION = {"nan", "null", "none", "n/a", "undefined"}

_ROWS_A_BATCH = 1000
_NAMED = 3  # of each kind of finding, in the text
_COMMON = 5

_MARKUP = re.compile(r"</?[a-z][^<>]*>|&(?:[a-z]{2,8}|#\d+);|(?:https?://|www\.)\S", re.IGNORECASE)


@dataclass(frozen=True)
class Spread:
    """The least, the mean, the median and the greatest of some numbers."""

    min: float
    mean: float
    median: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread | None":
        """Of an array; None if it is empty."""
        if not values.size:
            return None
        return cls(values.min().item(), values.mean().item(), float(np.median(values)), values.max().item())

    def __str__(self) -> str:
        return f"{self.min:,g}" if self.min == self.max else f"{self.min:,g} / {self.mean:,.1f} / {self.max:,g}"


@dataclass(frozen=True)
class Facts:
    """The numbers of a split, or of all.

    Attributes:
        images: How many there are, unreadable ones among them and missing ones not.
        missing, unreadable: How many of the corpus's images.
        captions: How many they have.
        different_captions: How many of these are different texts.
        captions_per_image: How many images have so many captions, by that number.
        words, tokens: Of the captions. Tokens are the language model's, with the prompt's space and the end token;
            None where there is no tokenizer.
        too_long: Captions that `data.max_caption_tokens` would cut.
        width, height: Of the images that can be opened, in pixels.
    """

    images: int
    missing: int
    unreadable: int
    captions: int
    different_captions: int
    captions_per_image: dict[int, int]
    words: Spread | None
    tokens: Spread | None
    too_long: int | None
    width: Spread | None
    height: Spread | None


@dataclass(frozen=True)
class Finding:
    """Something about one image.

    Attributes:
        split, file: The image's.
        reason: What it is.
        caption: The caption that it is about, if it is about one.
    """

    split: str
    file: str
    reason: str
    caption: str | None = None

    def __str__(self) -> str:
        about = f": {preview(self.caption)}" if self.caption is not None else ""
        return f"{self.file} ({self.split}): {self.reason}{about}"


@dataclass(frozen=True)
class Inspection:
    """What `inspect_data` found. `str` of it is a text for people.

    Attributes:
        path, format: The corpus's.
        splits: The numbers of each split.
        all: Those of all splits together.
        dropped: What the settings leave out of the corpus: how many, by the reason.
        max_caption_tokens: The limit behind `too_long`.
        no_tokens: Why tokens were not counted; None if they were.
        problems: What is wrong with single records, which are not among the images.
        missing, unreadable: Images.
        same_bytes: Groups of images that are copies of each other, byte for byte; each a list of split and file.
        common_captions: The captions that occur most often, if more than once.
        small, elongated: Images with a side below `SMALL_SIDE` pixels, or one above `LONG_SIDES` times the other.
        odd_captions: Captions without a letter, with broken characters, or with markup or a web address; texts such as
            "nan"; and captions far longer than the rest, or with line breaks.
        cut_captions: Captions that `data.max_caption_tokens` would cut, if tokens were counted.
        without_caption: Pictures in the corpus's folders that it does not mention.
        same_names: Groups of images whose names differ only by case; each a list of files.
        shared_texts: Groups of pictures that have their captions from one text file, by that file.
        refusal: The sentence with which training would refuse the data; None if it would not.
        later_refusals: The sentences with which training would refuse the data next, once each one before is mended.
        changes: The settings, by their full names, with which training would take the data as it is; {} if it takes
            it now, and None if no setting is enough.
        datasets: The images of each split that can be opened, as `Corpus.load` gives them.
    """

    path: str
    format: str
    splits: dict[str, Facts]
    all: Facts
    dropped: dict[str, int]
    max_caption_tokens: int
    no_tokens: str | None
    problems: list[Problem]
    missing: list[Finding]
    unreadable: list[Finding]
    same_bytes: list[list[tuple[str, str]]]
    common_captions: list[tuple[str, int]]
    small: list[Finding]
    elongated: list[Finding]
    odd_captions: list[Finding]
    cut_captions: list[Finding]
    without_caption: list[str]
    same_names: list[list[str]]
    shared_texts: dict[str, list[str]]
    refusal: str | None
    later_refusals: list[str]
    changes: dict[str, Any] | None
    datasets: dict[str, Dataset] = field(repr=False)

    @property
    def in_two_splits(self) -> list[list[tuple[str, str]]]:
        """The groups of `same_bytes` that are in more than one split."""
        return [group for group in self.same_bytes if len({split for split, _ in group}) > 1]

    def to_dict(self) -> dict[str, Any]:
        """All of it but the datasets, for JSON."""
        shown = [item for item in dataclasses.fields(self) if item.name != "datasets"]
        values = {item.name: _plain(getattr(self, item.name)) for item in shown}
        return values | {"in_two_splits": _plain(self.in_two_splits)}

    def __str__(self) -> str:
        return "\n".join(map(printable, _lines(self)))


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
    datasets, missing = _load_splits(corpus, settings)
    tallies, odd, cut = _measure_captions(datasets, settings, tokenizer)
    pictures = _Pictures.open_all(datasets, tallies, settings)
    odd += _find_line_breaks(corpus, datasets)
    problems = list(corpus.problems())
    refusals, changes = _find_refusals(corpus, settings, eval_images, pictures.errors)
    lost = [missing, pictures.unreadable]
    return Inspection(
        path=", ".join(str(part.source.path) for part in _parts(corpus)),
        format=corpus.format,
        splits={split: _facts({split: tally}, lost, settings) for split, tally in tallies.items()},
        all=_facts(tallies, lost, settings),
        dropped=corpus.dropped,
        max_caption_tokens=settings.max_caption_tokens,
        no_tokens=no_tokens if tokenizer is None else None,
        problems=problems,
        missing=missing,
        unreadable=pictures.unreadable,
        same_bytes=_find_copies(datasets, tallies),
        common_captions=_find_common(datasets, tallies),
        small=pictures.small,
        elongated=pictures.elongated,
        odd_captions=odd,
        cut_captions=cut,
        without_caption=[] if settings.limit else _find_unmentioned(datasets, problems),
        same_names=_find_same_names(datasets),
        shared_texts=_find_shared_texts(corpus),
        refusal=refusals[0] if refusals else None,
        later_refusals=refusals[1:],
        changes=changes,
        datasets=pictures.readable,
    )


def local_tokenizer(
    language: str | dict, revision: str | None = None, tokenizer_name: str | None = None
) -> PreTrainedTokenizerBase:
    """The tokenizer that training would take for a language model, if it can be had without fetching anything.

    Of "characters", one that knows none: it parts text as the one made of the captions does.

    Args:
        language: As of `compose`.
        revision: As of `compose`, its `language_revision`.
        tokenizer_name: As of `compose`, its `tokenizer`.

    Raises:
        BackboneError: It cannot.
    """
    if isinstance(language, dict):
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


class _Tally:
    """What is known of each image and each caption of a split, a few bytes each.

    Attributes:
        per_image: How many captions each image has.
        words, tokens, hashes: Of each caption; without a tokenizer there are no tokens.
        digests: A hash of each image's bytes.
        sizes: Width and height of each image; 0 where it cannot be opened.
    """

    def __init__(self, images: int):
        self.per_image, self.words, self.tokens = array("L"), array("L"), array("L")
        self.hashes = array("Q")
        self.digests = np.zeros(images, np.uint64)
        self.sizes = np.zeros((images, 2), np.int64)

    def add_captions(
        self,
        split: str,
        dataset: Dataset,
        tokenizer: PreTrainedTokenizerBase | None,
        separator: str,
        max_tokens: int,
    ) -> tuple[list[Finding], list[Finding]]:
        """Measures the captions. Returns the odd ones, and those of more than `max_tokens` tokens."""
        odd, cut = [], []
        for start in range(0, len(dataset), _ROWS_A_BATCH):
            rows = dataset[start : start + _ROWS_A_BATCH]
            for image, captions in zip(rows["image"], rows["captions"], strict=True):
                self.per_image.append(len(captions))
                for caption in captions:
                    self.words.append(count_words(caption))
                    self.hashes.append(_hash(caption.encode()))
                    if oddity := _find_oddity(caption):
                        odd.append(Finding(split, Place.parse(image).described, oddity, caption))
            texts = [separator + caption for captions in rows["captions"] for caption in captions]
            if tokenizer is not None and texts:
                encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
                counts = [len(ids) + 1 for ids in encoded.input_ids]
                self.tokens.extend(counts)
                pairs = zip(rows["image"], rows["captions"], strict=True)
                named = ((image, caption) for image, captions in pairs for caption in captions)
                for (image, caption), count in zip(named, counts, strict=True):
                    if count > max_tokens:
                        cut.append(Finding(split, Place.parse(image).described, f"{count:,} tokens", caption))
        return odd, cut


def _facts(tallies: dict[str, _Tally], lost: Sequence[list[Finding]], settings: DataSection) -> Facts:
    """Returns the numbers of some splits; `lost` are the missing and the unreadable images of all splits."""

    def join(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(tally, name)) for tally in tallies.values()])

    missing, unreadable = (sum(finding.split in tallies for finding in findings) for findings in lost)

    words, tokens, per_image, sizes = join("words"), join("tokens"), join("per_image"), join("sizes")
    sizes = sizes[sizes[:, 0] > 0]
    counts, images = np.unique(per_image, return_counts=True)
    return Facts(
        images=len(per_image),
        missing=missing,
        unreadable=unreadable,
        captions=len(words),
        different_captions=len(np.unique(join("hashes"))),
        captions_per_image={int(count): int(number) for count, number in zip(counts, images, strict=True)},
        words=Spread.of(words),
        tokens=Spread.of(tokens),
        too_long=int((tokens > settings.max_caption_tokens).sum()) if tokens.size else None,
        width=Spread.of(sizes[:, 0]),
        height=Spread.of(sizes[:, 1]),
    )


def _parts(corpus: Corpus | Corpora) -> list[Corpus]:
    return corpus.corpora if isinstance(corpus, Corpora) else [corpus]


def _load_splits(corpus: Corpus | Corpora, settings: DataSection) -> tuple[dict[str, Dataset], list[Finding]]:
    """Loads all splits of a corpus of pictures. Returns them and the missing images.

    Raises:
        DataError: The corpus has vectors instead of pictures, or cannot be read at all.
    """
    features = _parts(corpus)[0].source.features
    if features is not None:
        raise DataError(
            f"{features}: its rows are vectors, and this looks at pictures: training checks every "
            "number before it begins"
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


def _measure_captions(
    datasets: dict[str, Dataset], settings: DataSection, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[dict[str, _Tally], list[Finding], list[Finding]]:
    """Measures the captions of all splits. Returns the tallies, the odd captions and those that would be cut."""
    prompt = settings.prompt.rstrip()
    separator = " " if prompt and not prompt.endswith("<image>") else ""  # the same as in CaptionCollator
    tallies, odd, cut = {}, [], []
    for split, dataset in datasets.items():
        tallies[split] = tally = _Tally(len(dataset))
        found = tally.add_captions(split, dataset, tokenizer, separator, settings.max_caption_tokens)
        odd, cut = odd + found[0], cut + found[1]
    return tallies, odd + _find_long(datasets, tallies), cut


@dataclass
class _Pictures:
    """What opening all pictures has shown.

    Attributes:
        readable: The images of each split that can be opened.
        errors: Why the others cannot be opened, by entry of the column `image`.
        unreadable, small, elongated: See `Inspection`.
    """

    readable: dict[str, Dataset] = field(default_factory=dict)
    errors: dict[str, ImageError] = field(default_factory=dict)
    unreadable: list[Finding] = field(default_factory=list)
    small: list[Finding] = field(default_factory=list)
    elongated: list[Finding] = field(default_factory=list)

    @classmethod
    def open_all(cls, datasets: dict[str, Dataset], tallies: dict[str, _Tally], settings: DataSection) -> "_Pictures":
        """Opens the pictures of all splits, and adds their sizes to the tallies."""
        pictures = cls()
        for split, dataset in datasets.items():
            failed, small, elongated = _open_pictures(split, dataset, tallies[split], settings)
            pictures.small += small
            pictures.elongated += elongated
            for row, error in failed.items():
                image = dataset[row]["image"]
                pictures.errors[image] = error
                pictures.unreadable.append(Finding(split, Place.parse(image).described, error.reason))
            pictures.readable[split] = drop_rows(dataset, list(failed))
        return pictures


def _open_pictures(
    split: str, dataset: Dataset, tally: "_Tally", settings: DataSection
) -> tuple[dict[int, ImageError], list[Finding], list[Finding]]:
    """Opens the pictures of a split. Returns the errors by row, and the images that are small and elongated."""
    images = dataset["image"]
    looks = map_in_threads(lambda image: _look(image, settings.max_pixels, settings.max_bytes), images)
    errors: dict[int, ImageError] = {}
    small, elongated = [], []
    for row, look in enumerate(progress(looks, total=len(dataset), desc=f"images of {split}")):
        if isinstance(look, ImageError):
            errors[row] = look
            continue
        tally.digests[row], width, height = look
        tally.sizes[row] = width, height
        finding = Finding(split, Place.parse(images[row]).described, f"{width} x {height} pixels")
        if min(width, height) < SMALL_SIDE:
            small.append(finding)
        if max(width, height) > LONG_SIDES * min(width, height):
            elongated.append(finding)
    return errors, small, elongated


def _look(image: str, max_pixels: int, max_bytes: int) -> tuple[int, int, int] | ImageError:
    """A hash of the picture's bytes, its width and its height; read once, and opened as in training."""
    place = Place.parse(image)
    try:
        content = place.read(max_bytes)
        width, height = open_image(NamedBytes(content, place.described), max_pixels, max_bytes).size
    except ImageError as error:
        return error.detached()
    return _hash(content), width, height


def _hash(content: bytes) -> int:
    # 64 bits: among ten million, two that are different look the same once in 400,000 corpora.
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())


def _find_oddity(caption: str) -> str | None:
    if caption.strip().lower() in _NO_CAPTION:
        return "a text that stands for no caption"
    categories = {unicodedata.category(character) for character in caption}
    if not any(category.startswith("L") for category in categories):
        return "a caption without a letter"
    if "\N{REPLACEMENT CHARACTER}" in caption or categories & {"Cc", "Co"}:
        return "a caption with broken characters"
    if _MARKUP.search(caption):
        return "a caption with markup or a web address"
    return None


def _find_line_breaks(corpus: Corpus | Corpora, datasets: dict[str, Dataset]) -> list[Finding]:
    """Returns the captions with line breaks, which the datasets no longer have."""
    found = [
        (record, caption)
        for part in _parts(corpus)
        for record in part.records()
        if isinstance(record, Record)
        for caption in record.captions
        if len(caption.strip().splitlines()) > 1
    ]
    images = {record.image for record, _ in found}
    splits = {
        image: split for split, dataset in datasets.items() if images for image in dataset["image"] if image in images
    }
    return [
        Finding(
            splits.get(record.image, record.split or "left out"),
            Place.parse(record.image).described if record.image else record.where,
            "a caption with line breaks, which become spaces",
            caption,
        )
        for record, caption in found
    ]


def _find_copies(datasets: dict[str, Dataset], tallies: dict[str, _Tally]) -> list[list[tuple[str, str]]]:
    digests = np.concatenate([tally.digests for tally in tallies.values()])
    rows = [(split, row) for split, dataset in datasets.items() for row in range(len(dataset))]
    opened = np.concatenate([tally.sizes[:, 0] > 0 for tally in tallies.values()])
    values, counts = np.unique(digests[opened], return_counts=True)
    groups: dict[int, list[tuple[str, str]]] = {}
    for index in np.flatnonzero(opened & np.isin(digests, values[counts > 1])):
        split, row = rows[index]
        file = Place.parse(datasets[split][row]["image"]).described
        groups.setdefault(int(digests[index]), []).append((split, file))
    return list(groups.values())


def _find_common(datasets: dict[str, Dataset], tallies: dict[str, _Tally]) -> list[tuple[str, int]]:
    hashes = np.concatenate([np.asarray(tally.hashes) for tally in tallies.values()])
    per_image = np.concatenate([np.asarray(tally.per_image) for tally in tallies.values()])
    rows = [(split, row) for split, dataset in datasets.items() for row in range(len(dataset))]
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    ends = np.cumsum(per_image)
    common = []
    for found in np.argsort(-counts, kind="stable")[:_COMMON]:
        if counts[found] > 1:
            index = np.searchsorted(ends, first[found], side="right")
            split, row = rows[index]
            caption = datasets[split][row]["captions"][int(first[found] - (ends[index] - per_image[index]))]
            common.append((caption, int(counts[found])))
    return common


def _find_long(datasets: dict[str, Dataset], tallies: dict[str, _Tally]) -> list[Finding]:
    """Returns the captions that are far longer than the rest."""
    words = np.concatenate([np.asarray(tally.words) for tally in tallies.values()])
    least = max(_LONG_WORDS, _LONG_MEDIANS * float(np.median(words))) if words.size else 0
    found = []
    for split, dataset in datasets.items():
        tally = tallies[split]
        ends = np.cumsum(np.asarray(tally.per_image))
        for index in np.flatnonzero(np.asarray(tally.words) > least).tolist():
            row = int(np.searchsorted(ends, index, side="right"))
            caption = dataset[row]["captions"][index - int(ends[row]) + tally.per_image[row]]
            reason = f"a caption far longer than the rest, {tally.words[index]:,} words"
            found.append(Finding(split, Place.parse(dataset[row]["image"]).described, reason, caption))
    return found


def _find_unmentioned(datasets: dict[str, Dataset], problems: list[Problem]) -> list[str]:
    """Returns the pictures beside those of the corpus that no record is about."""
    images = [image for dataset in datasets.values() for image in dataset["image"]]
    images += [problem.image for problem in problems if problem.image]
    places = [place for place in map(Place.parse, images) if place.is_whole_file]
    mentioned = {Path(place.path) for place in places}
    found = []
    for folder in sorted({path.parent for path in mentioned}):
        if folder.is_dir():
            pictures = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            found += sorted(str(path) for path in pictures if path not in mentioned and path.name[0] != ".")
    return found


def _find_same_names(datasets: dict[str, Dataset]) -> list[list[str]]:
    groups: dict[str, list[str]] = {}
    for dataset in datasets.values():
        for image in dataset["image"]:
            file = Place.parse(image).described
            groups.setdefault(file.casefold(), []).append(file)
    return [sorted(files) for files in groups.values() if len(set(files)) > 1]


def _find_shared_texts(corpus: Corpus | Corpora) -> dict[str, list[str]]:
    return {
        str(text): list(map(str, images))
        for part in _parts(corpus)
        if part.format == "text_files"
        for text, images in shared_texts(part.source.path)
    }


def _find_refusals(
    corpus: Corpus | Corpora, settings: DataSection, eval_images: int, errors: dict[str, ImageError]
) -> tuple[list[str], dict[str, Any] | None]:
    """Returns all sentences with which training would refuse the data, and the settings with which it would take it.

    Args:
        corpus: The corpus.
        settings: The settings of training.
        eval_images: How many images of the dev split training uses.
        errors: The errors of the images that cannot be opened.
    """
    trial, refusals = settings, []
    refusal = _find_refusal(corpus, trial, eval_images, errors)
    for name, value in _remedies(corpus, settings):
        if refusal is None:
            break
        if refusal not in refusals:
            refusals.append(refusal)
        changed = dataclasses.replace(trial, **{name: value})
        tried = corpus.skipping_bad_records() if changed.on_bad_record == "skip" else corpus
        after = _find_refusal(tried, changed, eval_images, errors)
        if after != refusal:
            trial, refusal = changed, after
    if refusal is not None:
        return [*refusals, *([refusal] if refusal not in refusals else [])], None
    changes = {
        f"data.{item.name}": getattr(trial, item.name)
        for item in dataclasses.fields(trial)
        if getattr(trial, item.name) != getattr(settings, item.name)
    }
    return refusals, changes


def _remedies(corpus: Corpus | Corpora, settings: DataSection) -> Iterator[tuple[str, Any]]:
    """Yields settings that may each overcome a refusal, in the order in which training meets these."""
    if settings.on_bad_record == "error":
        yield "on_bad_record", "skip"
    others = [split for split in corpus.splits if split not in (settings.train_split, settings.dev_split)]
    if settings.train_split in corpus.splits:
        yield from (("dev_split", split) for split in others)
    else:
        yield from (("train_split", split) for split in others)
    if settings.on_bad_image == "error":
        yield "on_bad_image", "skip"
    yield from (
        ("max_bad_share", share / 100) for share in (10, 25, 50, 75, 99) if share / 100 > settings.max_bad_share
    )


def _find_refusal(
    corpus: Corpus | Corpora, settings: DataSection, eval_images: int, errors: dict[str, ImageError]
) -> str | None:
    """The first error that training would meet, in its order; `errors` are those of images that cannot be opened."""
    bad = bad_images(settings)
    try:
        left = []
        for dataset in load_splits(corpus, settings, eval_images, bad):
            failed = [row for row, image in enumerate(dataset["image"]) if image in errors]
            for image in (dataset[row]["image"] for row in failed):
                if bad is None:
                    raise errors[image]
                bad.add(image, errors[image].reason)
            left.append(drop_rows(dataset, failed))
        check_left(settings, *left)
    except (DataError, ImageError) as error:
        return str(error)
    return None


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {item.name: _plain(getattr(value, item.name)) for item in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {name: _plain(entry) for name, entry in value.items()}
    return [_plain(entry) for entry in value] if isinstance(value, (list, tuple)) else value


def _lines(inspection: Inspection) -> Iterator[str]:
    """Yields the lines of the text for people."""
    yield f"{inspection.path} ({inspection.format})"
    yield ""
    yield from _table_lines(inspection)
    if inspection.no_tokens:
        yield f"tokens: not counted: {inspection.no_tokens}"
    for what, count in inspection.dropped.items():
        if count:
            yield f"left out by the settings: {count:,} {what}"
    yield ""
    yield from _finding_lines(inspection)
    yield ""
    if inspection.refusal is None:
        yield "Training would take this data."
    else:
        yield f"Training would refuse this data: {inspection.refusal}"
        yield from (f"    and then: {refusal}" for refusal in inspection.later_refusals)


def _table_lines(inspection: Inspection) -> Iterator[str]:
    """Yields a table of the numbers, with a column for each split."""
    columns = dict(inspection.splits)
    if len(columns) != 1:
        columns["all"] = inspection.all
    rows = [("", *columns)]
    for name, show in (
        ("images", lambda facts: f"{facts.images:,}"),
        ("missing", lambda facts: f"{facts.missing:,}"),
        ("unreadable", lambda facts: f"{facts.unreadable:,}"),
        ("captions", lambda facts: f"{facts.captions:,}"),
        ("different ones", lambda facts: f"{facts.different_captions:,}"),
        ("captions an image", lambda facts: _show_histogram(facts.captions_per_image)),
        ("words a caption", lambda facts: _show(facts.words)),
        ("tokens a caption", lambda facts: _show(facts.tokens)),
        (f"more than {inspection.max_caption_tokens} tokens", lambda facts: _show(facts.too_long)),
        ("width", lambda facts: _show(facts.width)),
        ("height", lambda facts: _show(facts.height)),
    ):
        rows.append((name, *map(show, columns.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        yield "  ".join([name.ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(cells, widths[1:], strict=True))])
    yield "least / mean / greatest; width and height in pixels"


def _finding_lines(inspection: Inspection) -> Iterator[str]:
    """Yields how many findings of each kind there are, and the first of them."""
    copies = [" = ".join(f"{file} ({split})" for split, file in group) for group in inspection.same_bytes]
    cut = f"captions cut at {inspection.max_caption_tokens} tokens"
    across = [" = ".join(f"{file} ({split})" for split, file in group) for group in inspection.in_two_splits]
    for what, found in (
        ("problems", inspection.problems),
        ("missing images", inspection.missing),
        ("unreadable images", inspection.unreadable),
        ("images with copies, byte for byte", copies),
        ("images with copies in two splits", across),
        (f"images with a side below {SMALL_SIDE} pixels", inspection.small),
        (f"images more than {LONG_SIDES} times as long as wide", inspection.elongated),
        ("pictures that the corpus does not mention", inspection.without_caption),
        ("images whose names differ only by case", [" = ".join(files) for files in inspection.same_names]),
        (
            "texts that several pictures share",
            [f"{text}: {', '.join(images)}" for text, images in inspection.shared_texts.items()],
        ),
        ("odd captions", inspection.odd_captions),
        *([] if inspection.no_tokens else [(cut, inspection.cut_captions)]),
        ("captions that occur often", [f"{count:,} x {caption}" for caption, count in inspection.common_captions]),
    ):
        if what != "captions that occur often":
            yield f"{what}: {len(found):,}"
        elif found:
            yield f"{what}:"
        yield from (f"    {entry}" for entry in found[:_NAMED])


def _show(value: Spread | int | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _show_histogram(images: dict[int, int]) -> str:
    if not images:
        return "-"
    mean = sum(count * number for count, number in images.items()) / sum(images.values())
    return str(Spread(min(images), mean, mean, max(images)))

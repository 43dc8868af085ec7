"""What is wrong with the captions of a corpus."""

import re
import unicodedata
from collections.abc import Iterable, Sequence

import numpy as np
from datasets import Dataset
from transformers import PreTrainedTokenizerBase

from ..config.sections import DataSection
from ..data.captions import count_words
from ..data.places import Place
from ..data.records import Problem, Record
from .result import Finding
from .tally import Tally, hash_bytes

# Captions of so many words are listed if they are also so many times as long as the median.
_LONG_WORDS = 40
_LONG_MEDIANS = 5

# Texts that tools write where there is no caption.
_NO_CAPTION = {"nan", "null", "none", "n/a", "undefined"}

_ROWS_A_BATCH = 1000
_COMMON = 5

_MARKUP = re.compile(r"</?[a-z][^<>]*>|&(?:[a-z]{2,8}|#\d+);|(?:https?://|www\.)\S", re.IGNORECASE)


def measure_captions(
    datasets: dict[str, Dataset], settings: DataSection, tokenizer: PreTrainedTokenizerBase | None
) -> tuple[dict[str, Tally], list[Finding], list[Finding]]:
    """Measures the captions of all splits. Returns the tallies, the odd captions and those that would be cut."""
    prompt = settings.prompt.rstrip()
    # As in training: a chat's answer begins behind the marks of its turn.
    separator = " " if prompt and not settings.chat and not prompt.endswith("<image>") else ""
    tallies: dict[str, Tally] = {}
    odd: list[Finding] = []
    cut: list[Finding] = []
    for split, dataset in datasets.items():
        tallies[split] = tally = Tally(len(dataset))
        found = _measure_split(tally, split, dataset, tokenizer, separator, settings.max_caption_tokens)
        odd += found[0]
        cut += found[1]
    return tallies, odd + _find_long(datasets, tallies), cut


def _measure_split(
    tally: Tally,
    split: str,
    dataset: Dataset,
    tokenizer: PreTrainedTokenizerBase | None,
    separator: str,
    max_tokens: int,
) -> tuple[list[Finding], list[Finding]]:
    """Adds the captions of a split to its tally. Returns the odd ones, and those of more than `max_tokens` tokens."""
    odd, cut = [], []
    for start in range(0, len(dataset), _ROWS_A_BATCH):
        rows = dataset[start : start + _ROWS_A_BATCH]
        for image, captions in zip(rows["image"], rows["captions"], strict=True):
            tally.per_image.append(len(captions))
            for caption in captions:
                tally.words.append(count_words(caption))
                tally.hashes.append(hash_bytes(caption.encode()))
                if oddity := _find_oddity(caption):
                    odd.append(Finding(split, Place.parse(image).described, oddity, caption))
        texts = [separator + caption for captions in rows["captions"] for caption in captions]
        if tokenizer is not None and texts:
            encoded = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)
            counts = [len(ids) + 1 for ids in encoded.input_ids]
            tally.tokens.extend(counts)
            pairs = zip(rows["image"], rows["captions"], strict=True)
            named = ((image, caption) for image, captions in pairs for caption in captions)
            for (image, caption), count in zip(named, counts, strict=True):
                if count > max_tokens:
                    cut.append(Finding(split, Place.parse(image).described, f"{count:,} tokens", caption))
    return odd, cut


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


def _find_long(datasets: dict[str, Dataset], tallies: dict[str, Tally]) -> list[Finding]:
    """Returns the captions that are far longer than the rest."""
    words = np.concatenate([np.asarray(tally.words) for tally in tallies.values()])
    least = max(_LONG_WORDS, _LONG_MEDIANS * float(np.median(words))) if words.size else 0
    found = []
    for split, dataset in datasets.items():
        tally = tallies[split]
        starts = _starts(tally.per_image)
        for index in np.flatnonzero(np.asarray(tally.words) > least).tolist():
            row, number = _locate(starts, index)
            reason = f"a caption far longer than the rest, {tally.words[index]:,} words"
            image = Place.parse(dataset[row]["image"]).described
            found.append(Finding(split, image, reason, dataset[row]["captions"][number]))
    return found


def find_common(datasets: dict[str, Dataset], tallies: dict[str, Tally]) -> list[tuple[str, int]]:
    """Returns the captions that occur most often, and how often, if that is more than once."""
    hashes = np.concatenate([np.asarray(tally.hashes) for tally in tallies.values()])
    per_image = np.concatenate([np.asarray(tally.per_image) for tally in tallies.values()])
    rows = [(split, row) for split, dataset in datasets.items() for row in range(len(dataset))]
    _, first, counts = np.unique(hashes, return_index=True, return_counts=True)
    starts = _starts(per_image)
    common = []
    for found in np.argsort(-counts, kind="stable")[:_COMMON]:
        if counts[found] > 1:
            place, number = _locate(starts, int(first[found]))
            split, row = rows[place]
            common.append((datasets[split][row]["captions"][number], int(counts[found])))
    return common


def _starts(per_image: Sequence[int] | np.ndarray) -> np.ndarray:
    """Returns the index of each image's first caption among all captions, int64 [images]."""
    counts = np.asarray(per_image)
    return np.cumsum(counts) - counts


def _locate(starts: np.ndarray, index: int) -> tuple[int, int]:
    """Returns the image of the caption at an index, and the number of the caption among those of the image."""
    image = int(np.searchsorted(starts, index, side="right")) - 1
    return image, index - int(starts[image])


def find_line_breaks(records: Iterable[Record | Problem], datasets: dict[str, Dataset]) -> list[Finding]:
    """Returns the captions with line breaks.

    Args:
        records: What the readers of the corpus yield: the datasets have no line breaks any more.
        datasets: The splits.
    """
    found = [
        (record, caption)
        for record in records
        if isinstance(record, Record)
        for caption in record.captions
        if len(caption.strip().splitlines()) > 1
    ]
    if not found:
        return []
    images = {record.image for record, _ in found}
    splits = {image: split for split, dataset in datasets.items() for image in dataset["image"] if image in images}
    return [
        Finding(
            splits.get(record.image, record.split or "left out"),
            Place.parse(record.image).described if record.image else record.where,
            "a caption with line breaks, which become spaces",
            caption,
        )
        for record, caption in found
    ]

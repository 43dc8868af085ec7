"""What an inspection found."""

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from datasets import Dataset

from ..core.console import printable
from ..core.text import preview
from ..data.records import Problem
from .facts import Facts

# Pictures with a shorter side than this (pixels), or a longer side of more times the shorter one, are listed.
SMALL_SIDE = 64
LONG_SIDES = 4


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
        """Returns everything except the datasets, for JSON."""
        values = dataclasses.asdict(dataclasses.replace(self, datasets={}))
        del values["datasets"]
        return values | {"in_two_splits": self.in_two_splits}

    def __str__(self) -> str:
        from .text import describe  # which reads this class

        return "\n".join(map(printable, describe(self)))

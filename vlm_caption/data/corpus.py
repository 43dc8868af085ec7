"""A corpus that has been read: its splits as memory-mapped datasets, and what was wrong with it."""

import copy
import logging
import os
from collections.abc import Callable, Collection, Iterator
from typing import Literal

import pyarrow as pa
from datasets import Dataset

from ..core.errors import DataError
from .captions import Cleaning
from .places import Place
from .records import Format, Problem, Record, Source
from .store import store

logger = logging.getLogger(__name__)

# Other words for the split "dev".
_DEV_WORDS = ("val", "valid", "validation")

_ROWS_A_BATCH = 10_000


class Corpus:
    """Captioned images, read from their format into the cache, or found there.

    Args:
        source: The corpus.
        name: The name of its format.
        corpus_format: Its format.
        cleaning: For every caption.
        dev_share: The share of images to cut off as "dev", where the corpus has no splits.
        on_bad_record: What `load` does with bad records if there is no callback to report them to: "error" raises the
            first problem, and "skip" leaves such records out. A log line then says where all are listed.

    Attributes:
        format: The name of its format.
        dropped: How many captions and images the cleaning left out, by the reason in words.

    Raises:
        DataError: The corpus cannot be read.
    """

    def __init__(
        self,
        source: Source,
        name: str,
        corpus_format: Format,
        cleaning: Cleaning,
        dev_share: float,
        on_bad_record: Literal["error", "skip"] = "error",
    ):
        self.source, self.format = source, name
        self._skips = on_bad_record == "skip"
        self._read = corpus_format.read
        self._store = lambda renew: store(source, name, corpus_format, cleaning, dev_share, renew)
        self._stored, self._was_there = self._store(False)
        self.dropped = self._stored.dropped
        if any(self.dropped.values()):
            counts = ", ".join(f"{count:,} {what}" for what, count in self.dropped.items() if count)
            logger.info("%s: left out %s", source.path, counts)
        if self._skips and (count := sum(1 for _ in self.problems())):
            logger.warning(
                "%s: left out %s bad records, first: %s; all are listed in %s",
                source.path,
                f"{count:,}",
                next(self.problems()),
                self._stored.problems_file,
            )

    def skipping_bad_records(self) -> "Corpus":
        """Returns the same corpus, with bad records left out as `on_bad_record="skip"` does, and nothing logged."""
        skipping = copy.copy(self)
        skipping._skips = True
        return skipping

    @property
    def splits(self) -> list[str]:
        """The names of its splits, in the order in which the corpus first has them."""
        return list(self._stored.splits)

    def problems(self, split: str | None = None) -> Iterator[Problem]:
        """Yields what is wrong with single records of a split, or of all splits: those that were left out in reading.

        Missing pictures are not among them: `load` looks for these.
        """
        for problem in self._stored.problems():
            if split is None or problem.split in (None, split):
                yield problem

    def records(self) -> Iterator[Record | Problem]:
        """Yields what the reader of the corpus does, before captions are cleaned. The corpus is read again for this.

        Raises:
            DataError: The corpus cannot be read any more.
        """
        return self._read(self.source)

    def count(self, split: str) -> int | None:
        """Returns the number of images of a split, missing ones among them; None if there is no such split."""
        found = self._name_of(split)
        return None if found is None else len(self._stored.open(found))

    def load(
        self,
        split: str = "train",
        limit: int | None = None,
        on_problem: Callable[[Problem], None] | None = None,
        on_missing: Callable[[Problem], None] | None = None,
    ) -> Dataset:
        """Loads a split as a dataset with the columns `image` and `captions`.

        An image is a place, mostly a path; captions are a list of strings. The dataset is memory-mapped. `open_place`
        gives what `open_image` takes for an image.

        Args:
            split: Its name; "dev" also finds `val`, `valid` or `validation`.
            limit: Take the first `limit` images only.
            on_problem: Gets every problem of the split, and the records in question are left out. By default the
                first problem is raised, unless the corpus skips bad records.
            on_missing: Gets the images that are missing, in place of `on_problem`.

        Raises:
            DataError: There is no such split, or something is wrong and there is no callback to report it to.
        """
        if limit is not None and limit < 1:
            raise DataError(f"{self.source.path}: the limit is {limit}: give at least 1")
        found = self._find_split(split)
        dataset, missing = self._open(found, limit)
        if len(missing) == len(dataset) and self._was_there:  # the pictures may have moved since
            self._stored, self._was_there = self._store(True)
            found = self._find_split(split)
            dataset, missing = self._open(found, limit)
        self._report(found, on_problem)
        on_missing = on_missing or on_problem
        if missing and on_missing is None:
            first = Place.parse(dataset[missing[0]]["image"]).described
            raise DataError(f"{self.source.path}: {len(missing)} of {len(dataset)} images are missing, first: {first}")
        if missing and on_missing is not None:
            for row in missing:
                image = dataset[row]["image"]
                on_missing(Problem(Place.parse(image).described, "the image is missing", image, found))
            dataset = drop_rows(dataset, missing)
        return dataset

    def _name_of(self, split: str) -> str | None:
        """Returns the corpus's own name of a split; None if there is no such split."""
        if split in self._stored.splits:
            return split
        others = [word for word in _DEV_WORDS if split == "dev" and word in self._stored.splits]
        return others[0] if len(others) == 1 else None

    def _find_split(self, split: str) -> str:
        if (found := self._name_of(split)) is not None:
            return found
        self._report(None, None)  # what is wrong may be why
        there = ", ".join(sorted(self._stored.splits)) or "none"
        raise DataError(f"{self.source.path}: no image is in the split {split!r}; splits that are there: {there}")

    def _report(self, split: str | None, on_problem: Callable[[Problem], None] | None) -> None:
        first, count = None, 0
        for problem in self.problems(split):
            if on_problem is not None:
                on_problem(problem)
            first, count = first or problem, count + 1
        if first is not None and on_problem is None and not self._skips:
            more = f" ({count - 1:,} more of its records have problems)" if count > 1 else ""
            raise DataError(f"{first}{more}")

    def _open(self, split: str, limit: int | None) -> tuple[Dataset, list[int]]:
        """Returns a split, and the rows whose pictures are missing."""
        dataset = self._stored.open(split)
        if limit is not None:
            dataset = dataset.select(range(min(limit, len(dataset))))
        missing: list[int] = []
        if self.source.features is not None:  # its reader has looked for every row
            return dataset, missing
        shared: dict[str, bool] = {}  # files that hold many pictures
        for start, batch in _batches(dataset):
            for row, image in enumerate(batch.column("image").to_pylist(), start=start):
                place = Place.parse(image)
                if place.is_whole_file:
                    is_there = os.path.isfile(place.path)  # noqa: PTH113 - three times as fast, for a million paths
                else:
                    if place.path not in shared:
                        shared[place.path] = os.path.isfile(place.path)  # noqa: PTH113
                    is_there = shared[place.path]
                if not is_there:
                    missing.append(row)
        return dataset, missing


def count_captions(dataset: Dataset) -> int:
    """Counts the captions in a dataset of `Corpus.load`."""
    return sum(len(chunk.flatten()) for _, batch in _batches(dataset) for chunk in batch.column("captions").chunks)


def ask_one_by_one(dataset: Dataset) -> Dataset:
    """Returns a dataset with questions as one row for each image and question, with its answers, held in memory."""
    rows: list[dict] = []
    for row in dataset:
        answers: dict[str, list[str]] = {}
        for question, answer in zip(row["questions"], row["captions"], strict=True):
            answers.setdefault(question, []).append(answer)
        rows += [
            {**row, "captions": texts, "questions": [question] * len(texts)} for question, texts in answers.items()
        ]
    return Dataset.from_list(rows, features=dataset.features)


def drop_rows(dataset: Dataset, rows: Collection[int]) -> Dataset:
    """Returns a dataset without some of its rows."""
    gone = set(rows)
    return dataset.select([row for row in range(len(dataset)) if row not in gone]) if gone else dataset


def _batches(dataset: Dataset) -> Iterator[tuple[int, pa.Table]]:
    arrow = dataset.with_format("arrow")
    for start in range(0, len(dataset), _ROWS_A_BATCH):
        yield start, arrow[start : start + _ROWS_A_BATCH]

"""Several corpora as one, each of its own format, with its own pictures and its own splits."""

import copy
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from datasets import Dataset, concatenate_datasets

from ..core.errors import DataError
from .corpus import Corpus
from .records import Problem

logger = logging.getLogger(__name__)

# The column that says which corpus a row is of.
CORPUS = "corpus"


class Corpora:
    """Several corpora, used as one `Corpus`.

    Args:
        corpora: The corpora, in order.

    Attributes:
        names: A different name for each corpus, made of its path.
        format: The names of their formats.
    """

    def __init__(self, corpora: Sequence[Corpus]):
        self.corpora = list(corpora)
        self.names = corpus_names([str(corpus.source.path) for corpus in corpora])
        self.format = ", ".join(dict.fromkeys(corpus.format for corpus in corpora))

    @property
    def dropped(self) -> dict[str, int]:
        """How many captions and images the cleaning left out, by the reason in words."""
        reasons = dict.fromkeys(reason for corpus in self.corpora for reason in corpus.dropped)
        return {reason: sum(corpus.dropped.get(reason, 0) for corpus in self.corpora) for reason in reasons}

    @property
    def splits(self) -> list[str]:
        """The names of all their splits."""
        return list(dict.fromkeys(split for corpus in self.corpora for split in corpus.splits))

    def skipping_bad_records(self) -> "Corpora":
        """Returns the same corpora; see `Corpus.skipping_bad_records`."""
        skipping = copy.copy(self)
        skipping.corpora = [corpus.skipping_bad_records() for corpus in self.corpora]
        return skipping

    def problems(self, split: str | None = None) -> Iterator[Problem]:
        """Yields what is wrong with single records; see `Corpus.problems`."""
        return itertools.chain.from_iterable(corpus.problems(split) for corpus in self.corpora)

    def require(self, split: str) -> None:
        """Checks that all corpora have a split.

        Raises:
            DataError: One lacks it.
        """
        for corpus in self.corpora:
            if corpus.count(split) is None:
                corpus.load(split)  # says which splits are there

    def load(
        self,
        split: str = "train",
        limit: int | None = None,
        on_problem: Callable[[Problem], None] | None = None,
        on_missing: Callable[[Problem], None] | None = None,
    ) -> Dataset:
        """Loads a split of all corpora, one after the other, with the further column `corpus`: the corpus's name.

        An image that two corpora have is two rows.

        Args:
            split: Its name; see `Corpus.load`.
            limit: Take this many images, as evenly of the corpora as their sizes allow, and the first ones of each.
            on_problem, on_missing: See `Corpus.load`.

        Raises:
            DataError: No corpus has the split, or something is wrong and there is no callback to report it to.
        """
        sizes = [corpus.count(split) for corpus in self.corpora]
        parts = []
        for corpus, name, size, share in zip(self.corpora, self.names, sizes, share_evenly(sizes, limit), strict=True):
            if size is None and set(sizes) != {None}:
                logger.warning("%s has no split %r: the others have", corpus.source.path, split)
            elif share != 0:
                part = corpus.load(split, share, on_problem, on_missing)
                parts.append(part.add_column(CORPUS, [name] * len(part)))
        return concatenate_datasets(parts)


def corpus_name(path: str) -> str:
    """Returns the name of the folder of a corpus, given the folder or a table in it."""
    resolved = Path(path).resolve()
    return resolved.parent.name if resolved.is_file() else resolved.name


def corpus_names(paths: Sequence[str]) -> list[str]:
    """Returns a different name for each of several corpora: its folder's name, with a number if that is taken."""
    names: list[str] = []
    for path in paths:
        name = corpus_name(path)
        numbered = (f"{name}-{number}" for number in itertools.count(2))
        names.append(name if name not in names else next(other for other in numbered if other not in names))
    return names


def share_evenly(sizes: Sequence[int | None], limit: int | None) -> list[int | None]:
    """Returns how many rows to take of each part, at most `limit` together; None: all of them.

    A part that has fewer rows than its share leaves the rest to the others.

    Args:
        sizes: The number of rows of each part; None if it is unknown.
        limit: The number to divide.

    Raises:
        DataError: The limit is below 1.
    """
    if limit is None:
        return [None] * len(sizes)
    if limit < 1:
        raise DataError(f"the limit is {limit}: give at least 1")
    shares: list[int | None] = [None] * len(sizes)
    known = [part for part, size in enumerate(sizes) if size is not None]
    for done, part in enumerate(sorted(known, key=lambda part: sizes[part] or 0)):
        share = min(sizes[part] or 0, -(-limit // (len(known) - done)))
        shares[part] = share
        limit -= share
    return shares


def in_turn(dataset: Dataset) -> Dataset:
    """Returns the rows of `Corpora.load` in turn: the first one of each corpus, the second one of each, and so on.

    Any number of rows from the start is then a fair sample. The rows of a single corpus stay as they are.
    """
    if CORPUS not in dataset.column_names:
        return dataset
    order = [row for rank in itertools.zip_longest(*rows_of(dataset).values()) for row in rank if row is not None]
    return dataset.select(order)


def rows_of(dataset: Dataset) -> dict[str, list[int]]:
    """Returns the rows of each corpus by its name; {} if the dataset is of a single one."""
    rows: dict[str, list[int]] = {}
    if CORPUS in dataset.column_names:
        for row, name in enumerate(dataset[CORPUS]):
            rows.setdefault(name, []).append(row)
    return rows

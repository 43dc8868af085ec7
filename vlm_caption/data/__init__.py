"""Images with their captions, from the formats that corpora come in.

A format is one module with two functions: one says whether a path holds it, the other, a `Reader`, yields its images.
"""

import difflib
import os
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

from datasets import Dataset, Features, List, Value

from .captions import CaptionedImage, DataError, clean_caption
from .flickr8k import TOKEN_FILE, holds_flickr8k, read_flickr8k
from .table import TABLE_NAMES, TABLE_SUFFIXES, holds_table, read_table

__all__ = ["FORMATS", "CaptionedImage", "DataError", "Reader", "clean_caption", "load_captions"]

Reader = Callable[[Path, str], Iterator[CaptionedImage]]

FORMATS: dict[str, Reader] = {"flickr8k": read_flickr8k, "table": read_table}

# How a format is recognised, in the order tried, and the words for it.
_SIGNS: dict[str, tuple[Callable[[Path], bool], str]] = {
    "flickr8k": (holds_flickr8k, f"a folder with {TOKEN_FILE}"),
    "table": (holds_table, f"a {', '.join(TABLE_SUFFIXES)} file or a folder with {', '.join(TABLE_NAMES)}"),
}

_FEATURES = Features({"image": Value("string"), "captions": List(Value("string"))})


def load_captions(
    path: str | os.PathLike, split: str = "train", format: str | None = None, limit: int | None = None
) -> Dataset:
    """Read captioned images as a dataset with the columns `image` (a path) and `captions` (a list of strings).

    The dataset is an Arrow table in memory, of paths and sentences only: a few MB for tens of thousands of captions.
    It writes no cache, and so none can go stale: `Dataset.from_generator` would serve its old cache after the files
    have changed.

    Args:
        path: A corpus's folder, or a table.
        split: The split to read, in the corpus's own words.
        format: A name in `FORMATS`; by default it is recognised from what is there.
        limit: Take the first `limit` images only.

    Raises:
        DataError: The format is not known, the corpus is malformed or has no such split, or images are missing.
    """
    source = Path(path)
    if not source.exists():
        raise DataError(f"{source}: there is no such file or folder")
    if limit is not None and limit < 1:
        raise DataError(f"{source}: the limit is {limit}: give at least 1")
    reader = _get_reader(_recognise(source) if format is None else format)

    records = list(islice(reader(source, split), limit))
    if not records:
        raise DataError(f"{source}: the split {split!r} is empty")
    missing = [record.image for record in records if not Path(record.image).is_file()]
    if missing:
        raise DataError(f"{source}: {len(missing)} of {len(records)} images are missing, first: {missing[0]}")
    return Dataset.from_dict(
        {"image": [record.image for record in records], "captions": [list(record.captions) for record in records]},
        features=_FEATURES,
    )


def _get_reader(name: str) -> Reader:
    if name not in FORMATS:
        near = difflib.get_close_matches(name.lower(), FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(FORMATS)}"
        raise DataError(f"unknown format {name!r}: {hint}")
    return FORMATS[name]


def _recognise(source: Path) -> str:
    for name, (holds, _) in _SIGNS.items():
        if holds(source):
            return name
    looked_for = "; ".join(f"{words} ({name})" for name, (_, words) in _SIGNS.items())
    raise DataError(f"{source}: the format is not recognised: looked for {looked_for}; found {_list_some(source)}")


def _list_some(source: Path) -> str:
    if not source.is_dir():
        return f"a file that ends in {source.suffix!r}"
    names = sorted(child.name for child in source.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "an empty folder") + more

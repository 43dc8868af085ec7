"""What is written of a caption: the keys of its line of JSON, which are the columns of a table."""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from ..core.text import readable

if TYPE_CHECKING:
    from .caption import Caption

Entry = dict[str, Any]

# In order. Every caption has them.
COLUMNS: dict[str, type] = {
    "image": str,
    "caption": str,
    "score": float,
    "confidence": float,
    "finished": bool,
    "checkpoint": str,
}

# Those that may have no value: null in JSON and Parquet, and nothing in CSV.
NULLABLE_COLUMNS = ("confidence",)

# Behind these, in order: the columns that only some captions have, such as those of several prompts.
OPTIONAL_COLUMNS: dict[str, type] = {"prompt": str}

ALL_COLUMNS = COLUMNS | OPTIONAL_COLUMNS


def as_entry(caption: "Caption") -> Entry:
    """Returns a caption as the object of a line. Bytes of a file's name that are no text are written as `\\xff`."""
    entry = {
        "image": readable(caption.image),
        "caption": caption.text,
        "score": round(caption.score, 4),
        "confidence": None if caption.confidence is None else round(caption.confidence, 4),
        "finished": caption.finished,
        "checkpoint": caption.checkpoint,
    }
    return entry | ({"prompt": readable(caption.prompt)} if caption.prompt else {})


def columns_of(entries: Iterable[Entry]) -> dict[str, type]:
    """Returns the columns that a table of captions needs, and the type of each."""
    there = {name for entry in entries for name in entry}
    return COLUMNS | {name: kind for name, kind in OPTIONAL_COLUMNS.items() if name in there}


def are_columns(names: Iterable[str]) -> bool:
    """Returns whether a table with these columns, in order, is one of captions."""
    names = list(names)
    return names == [name for name in ALL_COLUMNS if name in COLUMNS or name in names]

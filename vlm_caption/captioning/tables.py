"""Reads and writes captions as files of other programs: CSV, Parquet, and COCO's results format."""

import csv
import io
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import write_bytes
from ..core.text import defuse_formula

COLUMNS = ("image", "caption", "score", "finished", "checkpoint")

# COCO's image ids are the numbers in its file names.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg")

Entry = dict[str, Any]


def read_table(path: Path, kind: str) -> list[Entry]:
    """Reads the captions that `write_table` wrote.

    Args:
        path: The file.
        kind: "csv", "parquet" or "coco".

    Returns:
        Objects with the keys `COLUMNS`; none if there is no such file, or an empty one.

    Raises:
        DataError: The file holds something else, or cannot be read.
    """
    try:
        content = path.read_bytes()
        entries = _READERS[kind](content) if content else []
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{path}: the captions cannot be read ({error.strerror or error})") from error
    except (ValueError, KeyError, TypeError, csv.Error, RecursionError) as error:  # pyarrow's are ValueErrors
        raise DataError(f"{path}: this is no {kind} file of captions: name another file.") from error
    return entries


def write_table(path: Path, kind: str, entries: Sequence[Entry]) -> None:
    """Writes captions to a file, whole or not at all.

    Args:
        path: The file.
        kind: "csv", "parquet" or "coco".
        entries: Objects with the keys `COLUMNS`.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        write_bytes(path, _WRITERS[kind](entries))
    except OSError as error:
        raise DataError(f"{path}: captions cannot be written there ({error.strerror or error})") from error


def csv_lines(entries: Sequence[Entry], head: bool = False) -> str:
    """Returns captions as lines of CSV (RFC 4180). Cells that look like formulas are defused."""
    file = io.StringIO()
    writer = csv.writer(file)
    if head:
        writer.writerow(COLUMNS)
    for entry in entries:
        image, caption, score, finished, checkpoint = (entry.get(column, "") for column in COLUMNS)
        is_finished = str(finished).lower()
        writer.writerow([defuse_formula(image), defuse_formula(caption), score, is_finished, checkpoint])
    return file.getvalue()


def _read_csv(content: bytes) -> list[Entry]:
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    if tuple(next(rows)) != COLUMNS:
        raise ValueError("other columns")
    entries = []
    for row in rows:
        image, caption, score, finished, checkpoint = row
        image, caption = (cell[1:] if defuse_formula(cell[1:]) == cell else cell for cell in (image, caption))
        is_finished = {"true": True, "false": False}[finished]
        entries.append(dict(zip(COLUMNS, (image, caption, float(score), is_finished, checkpoint), strict=True)))
    return entries


def _write_csv(entries: Sequence[Entry]) -> bytes:
    return csv_lines(entries, head=True).encode()


def _read_parquet(content: bytes) -> list[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(content))
    if tuple(table.column_names) != COLUMNS:
        raise ValueError("other columns")
    return table.to_pylist()


def _write_parquet(entries: Sequence[Entry]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types = (pa.string(), pa.string(), pa.float64(), pa.bool_(), pa.string())
    table = pa.Table.from_pylist(list(entries), schema=pa.schema(list(zip(COLUMNS, types, strict=True))))
    file = io.BytesIO()
    pq.write_table(table, file)
    return file.getvalue()


def _read_coco(content: bytes) -> list[Entry]:
    entries = json.loads(content)
    if not isinstance(entries, list) or not all(isinstance(entry["image"], str) for entry in entries):
        raise ValueError("other entries")
    return [{column: entry[column] for column in COLUMNS} for entry in entries]


def _write_coco(entries: Sequence[Entry]) -> bytes:
    """Writes COCO's results. Keys besides `image_id` and `caption` are ignored by the readers of the format."""
    results = []
    for entry in entries:
        name = Path(entry["image"]).name
        match = _COCO_NAME.fullmatch(name)
        results.append({"image_id": int(match[1]) if match else name, **entry})
    return json.dumps(results, indent=0).encode() + b"\n"


_READERS: dict[str, Callable[[bytes], list[Entry]]] = {
    "csv": _read_csv,
    "parquet": _read_parquet,
    "coco": _read_coco,
}
_WRITERS: dict[str, Callable[[Sequence[Entry]], bytes]] = {
    "csv": _write_csv,
    "parquet": _write_parquet,
    "coco": _write_coco,
}

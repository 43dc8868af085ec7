"""Reads and writes captions as files of other programs: CSV, Parquet, and COCO's results format."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from ..core.errors import DataError
from ..core.files import write_bytes
from ..core.text import defuse_formula
from .columns import ALL_COLUMNS, COLUMNS, NULLABLE_COLUMNS, OPTIONAL_COLUMNS, Entry, are_columns, columns_of

# COCO's image ids are the numbers in its file names.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg")


def read_table(path: Path, kind: str) -> list[Entry]:
    """Reads the captions that `write_table` wrote.

    Args:
        path: The file.
        kind: "csv", "parquet" or "coco".

    Returns:
        Objects with the keys of `columns.py`; none if there is no such file, or an empty one.

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
        entries: Objects with the keys of `columns.py`.

    Raises:
        DataError: The file cannot be written.
    """
    try:
        write_bytes(path, encode_table(kind, entries))
    except OSError as error:
        raise DataError(f"{path}: captions cannot be written there ({error.strerror or error})") from error


def encode_table(kind: str, entries: Sequence[Entry]) -> bytes:
    """Returns the content of the file that `write_table` writes."""
    return _WRITERS[kind](entries)


def csv_lines(entries: Iterable[Entry], columns: Iterable[str]) -> str:
    """Returns captions as lines of CSV (RFC 4180). Cells that look like formulas are defused."""
    file = io.StringIO()
    csv.writer(file).writerows([_as_cell(entry.get(column, "")) for column in columns] for entry in entries)
    return file.getvalue()


def csv_head(columns: Iterable[str]) -> str:
    """Returns the first line of a CSV file, which names the columns."""
    return csv_lines([{column: column for column in columns}], columns)


def _as_cell(value: Any) -> Any:
    if isinstance(value, bool):
        return str(value).lower()
    return defuse_formula(value) if isinstance(value, str) else value


def _from_cell(cell: str, kind: type) -> Any:
    if kind is bool:
        return {"true": True, "false": False}[cell]
    if kind is str:
        return cell[1:] if defuse_formula(cell[1:]) == cell else cell
    return kind(cell)


def _read_csv(content: bytes) -> list[Entry]:
    rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
    names = next(rows)
    if not are_columns(names):
        raise ValueError("other columns")
    return [
        {
            name: None if not cell and name in NULLABLE_COLUMNS else _from_cell(cell, kind)
            for name, kind, cell in zip(names, map(ALL_COLUMNS.__getitem__, names), row, strict=True)
            if cell or name not in OPTIONAL_COLUMNS
        }
        for row in rows
    ]


def _write_csv(entries: Sequence[Entry]) -> bytes:
    columns = columns_of(entries)
    return (csv_head(columns) + csv_lines(entries, columns)).encode()


def _read_parquet(content: bytes) -> list[Entry]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(pa.BufferReader(content))
    if not are_columns(table.column_names):
        raise ValueError("other columns")
    return [
        {name: value for name, value in row.items() if value is not None or name not in OPTIONAL_COLUMNS}
        for row in table.to_pylist()
    ]


def _write_parquet(entries: Sequence[Entry]) -> bytes:
    import pyarrow as pa
    import pyarrow.parquet as pq

    types: dict[type, pa.DataType] = {str: pa.string(), float: pa.float64(), bool: pa.bool_()}
    schema = pa.schema([(name, types[kind]) for name, kind in columns_of(entries).items()])
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(list(entries), schema=schema), file)
    return file.getvalue()


def _read_coco(content: bytes) -> list[Entry]:
    entries = json.loads(content)
    if not isinstance(entries, list) or not all(isinstance(entry["image"], str) for entry in entries):
        raise ValueError("other entries")
    return [{name: entry[name] for name in ALL_COLUMNS if name in entry or name in COLUMNS} for entry in entries]


def _write_coco(entries: Sequence[Entry]) -> bytes:
    """Writes COCO's results. Keys besides `image_id` and `caption` are ignored by the readers of the format.

    An image's id is COCO's number, or else the file's name, or the whole path where names are not unique.
    """
    names = [Path(entry["image"]).name for entry in entries]
    times = Counter(names)
    results = []
    for entry, name in zip(entries, names, strict=True):
        match = _COCO_NAME.fullmatch(name)
        image_id = name if times[name] == 1 else entry["image"]
        results.append({"image_id": int(match[1]) if match and times[name] == 1 else image_id, **entry})
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

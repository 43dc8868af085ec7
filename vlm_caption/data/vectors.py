"""Vectors computed elsewhere, by any encoder of anything, and the table of captions that belongs to them.

    vectors = open_vectors("mine/vectors.npy")
    vectors[[0, 4]]                              # float32 [2, N, D], from a memory-mapped file

For a corpus, `read_vector_table` yields records whose `image` is the name of an input in the file of vectors: the
number of its row, or its id.
"""

import copy
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from safetensors import SafetensorError, safe_open

from ..core.console import first_line_of
from ..core.errors import DataError
from ..core.files import is_file
from ..core.text import preview
from ..core.untrusted import read_safetensors_header
from .readers.arrow import open_parquet, read_batches
from .readers.table import TABLE_NAMES, TABLE_SUFFIXES, find_table, read_csv, read_jsonl
from .records import CAPTION_COLUMNS, SPLIT_COLUMN, Format, Problem, Record, Source, as_captions, find_column, the_one

SUFFIXES = (".npy", ".safetensors", ".parquet")

# Columns that name the input of a row of the captions' table, unless `data.image_column` does.
ROW_COLUMN, ID_COLUMN = "row", "id"

_ROWS_A_CHECK = 1024
_SHAPES = "one vector a row [rows, D], or as many for each row [rows, N, D]"


class Vectors:
    """Inputs that are vectors in a memory-mapped file: one vector for each input, or N for each.

    `vectors[[4, 0]]` and `vectors[2:8]` are float32 [rows, N, D], whatever the file's type. Nothing else is read.

    Attributes:
        path: The file.
        names: The name of each row of the file: its number, from 0, or its id.
        has_ids: Whether the names are ids.
    """

    def __init__(self, path: Path, parts: Sequence[torch.Tensor], sizes: Sequence[int], names: Sequence[str] | None):
        """
        Args:
            path: The file.
            parts: Its rows, one tensor [n, N, D] after the other.
            sizes: The number of rows in each part.
            names: The rows' ids, or None if they have none.
        """
        self.path, self._parts = path, parts
        self._ends = np.cumsum(sizes)
        self._rows = np.arange(self._ends[-1])
        self.has_ids = names is not None
        self.names: Sequence = range(len(self._rows)) if names is None else names
        self._row_of = None if names is None else {name: row for row, name in enumerate(names)}
        self._row_shape = tuple(parts[0].shape[1:])

    def __len__(self) -> int:
        return len(self._rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(rows, N, D)."""
        tokens, width = self._row_shape
        return (len(self), tokens, width)

    def __getitem__(self, rows: Sequence[int] | slice) -> torch.Tensor:
        """Returns the vectors of some rows, float32 [rows, N, D].

        Raises:
            DataError: A number is not finite.
        """
        chosen = self._rows[rows]
        out = torch.empty(len(chosen), *self._row_shape)
        parts = np.searchsorted(self._ends, chosen, side="right")
        from_end = chosen - self._ends[parts]  # below 0
        for i, (part, row) in enumerate(zip(parts.tolist(), from_end.tolist(), strict=True)):
            out[i] = self._parts[part][row]
        if not out.isfinite().all():
            row = int(chosen[int((~out.isfinite()).flatten(1).any(1).nonzero()[0])])
            name = f"{'' if self.has_ids else 'row '}{self.names[row]}"
            raise DataError(
                f"{self.path}, {name}: a number is not finite (NaN, or infinite in float32): "
                "correct it, or leave the row out"
            )
        return out

    def name(self, index: int) -> str:
        """Returns the name of the row at this index."""
        return str(self.names[int(self._rows[index])])

    def find(self, name: str) -> int | None:
        """Returns the row that is called `name`, if there is one."""
        if self._row_of is not None:
            return self._row_of.get(name)
        row = int(name) if name.isascii() and name.isdecimal() else -1
        return row if 0 <= row < self._ends[-1] else None

    def select(self, names: Sequence[str]) -> "Vectors":
        """Returns the rows of these names, in this order.

        Raises:
            DataError: A number in one of them is not finite.
        """
        chosen = copy.copy(self)
        chosen._rows = np.array([self.find(name) for name in names], dtype=np.int64)
        for start in range(0, len(chosen), _ROWS_A_CHECK):
            chosen[start : start + _ROWS_A_CHECK]
        return chosen


def open_vectors(path: str | os.PathLike, column: str | None = None) -> Vectors:
    """Opens a file of vectors.

    Args:
        path: A `.npy` or `.safetensors` file of one array [rows, D] or [rows, N, D]; a `.safetensors` file with a
            tensor [D] or [N, D] for each input, by its id; or a `.parquet` file with a column of lists of numbers, or
            of lists of these. Integers and floats of any width will do.
        column: The column of a Parquet file, if it has several.

    Raises:
        DataError: It cannot be read, or holds something else.
    """
    path = Path(path)
    if not is_file(path):
        raise DataError(f"{path}: there is no such file of vectors")
    if column is not None and path.suffix.lower() != ".parquet":
        raise DataError(f"{path}: data.feature_column is for a .parquet file: leave it out")
    readers = {".npy": _open_npy, ".safetensors": _open_safetensors}
    if path.suffix.lower() == ".parquet":
        return _open_parquet(path, column)
    if path.suffix.lower() not in readers:
        raise DataError(f"{path}: vectors are read from files that end in {', '.join(SUFFIXES)}: save them as one")
    return readers[path.suffix.lower()](path)


def _open_npy(path: Path) -> Vectors:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that nothing may be written to it, and nothing is
            tensor = torch.from_numpy(array)
    except Exception as error:  # its header is evaluated as Python text: SyntaxError, TokenError, RecursionError, …
        raise DataError(
            f"{path}: this is no array of numbers that can be mapped into memory ({first_line_of(error)}): save it "
            "with numpy.save, as float32"
        ) from error
    return _of_one(path, tensor, list(array.shape))


def _open_safetensors(path: Path) -> Vectors:
    read_safetensors_header(path)
    try:
        file = safe_open(path, framework="pt")
        names = list(file.keys())  # it is no dict
        shapes = [file.get_slice(name).get_shape() for name in names]
        if len(names) == 1 and len(shapes[0]) > 1:
            return _of_one(path, file.get_tensor(names[0]), shapes[0])
        if not names:
            raise DataError(f"{path}: it holds no tensor")
        _check_numbers(path, file.get_tensor(names[0]))
    except (OSError, SafetensorError) as error:
        raise DataError(f"{path}: this is not a safetensors file ({first_line_of(error)})") from error
    except RuntimeError as error:  # PyTorch maps files as if it might write to them
        raise DataError(
            f"{path}: larger than this machine's memory ({first_line_of(error)}): save it as .npy"
        ) from error
    for name, shape in zip(names, shapes, strict=True):
        if shape != shapes[0]:
            raise DataError(
                f"{path}: {names[0]} has the shape {shapes[0]}, and {name} {shape}: give every input as many vectors, "
                "all of one width (average them, cut them, or pad them)"
            )
    if len(shapes[0]) not in (1, 2) or 0 in shapes[0]:
        raise DataError(f"{path}: {names[0]} has the shape {shapes[0]}: give each id a vector [D], or several [N, D]")
    return Vectors(path, _ById(file, names), [1] * len(names), names)


class _ById(Sequence):
    """The tensors of a safetensors file, each as a part of one row; read when they are wanted."""

    def __init__(self, file: Any, names: list[str]):
        self._file, self._names = file, names

    def __len__(self) -> int:
        return len(self._names)

    def __getitem__(self, index):
        tensor = self._file.get_tensor(self._names[index])
        return tensor[None, None] if tensor.ndim == 1 else tensor[None]


def _open_parquet(path: Path, column: str | None) -> Vectors:
    dataset = open_parquet(path)
    types = {field.name: field.type for field in dataset.data.schema}
    lists = [name for name, kind in types.items() if _number_type(kind) is not None]
    if column is None and len(lists) != 1:
        found = f"{', '.join(lists)} are" if lists else "none is"
        raise DataError(f"{path}: vectors are in a column of lists of numbers, and {found}: set data.feature_column")
    name = lists[0] if column is None else column
    if name not in lists:
        kind = types.get(name)
        reason = (
            "there is no such column" if kind is None else f"it is of the type {kind}, and not of lists of numbers"
        )
        raise DataError(f"{path}, column {name!r}: {reason}: choose another data.feature_column")
    parts: list[torch.Tensor] = []
    for file in dataset.cache_files:
        for _, batch in read_batches(Path(file["filename"]), str(path)):
            if len(batch):
                start = sum(map(len, parts))
                parts.append(_as_tensor(batch.column(name), f"{path}, column {name!r}", start))
    shapes = sorted({tuple(part.shape[1:]) for part in parts})
    if not parts:
        raise DataError(f"{path}: it has no rows")
    if len(shapes) > 1:
        raise DataError(_uneven(f"{path}, column {name!r}", *map(list, shapes[:2])))
    return Vectors(path, parts, [len(part) for part in parts], None)


def _number_type(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type of the numbers in a column of lists, or of lists of lists; None if it is anything else."""
    depth = 0
    while True:
        if isinstance(kind, pa.BaseExtensionType):
            kind = kind.storage_type
        if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
            break
        kind, depth = kind.value_type, depth + 1
    is_number = pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return kind if is_number and depth in (1, 2) else None


def _as_tensor(column: Any, where: str, start: int) -> torch.Tensor:
    """Returns lists, or lists of lists, of one length each as a tensor [rows, N, D], without a copy.

    Raises:
        DataError: They are of several lengths, or some are missing.
    """
    sizes: list[int] = []
    rows = len(column)
    while not (pa.types.is_integer(column.type) or pa.types.is_floating(column.type)):
        if isinstance(column, pa.ExtensionArray):
            column = column.storage
            continue
        if column.null_count:
            raise DataError(f"{where}: a row from {start} to {start + rows - 1} has no vectors: leave that row out")
        lengths = np.asarray(pc.list_value_length(column))  # ty: ignore[missing-attribute]
        if len(lengths) and lengths.min() != lengths.max():
            raise DataError(_uneven(where, lengths[:1].tolist(), lengths[lengths != lengths[0]][:1].tolist()))
        sizes.append(int(lengths[0]) if len(lengths) else 0)
        column = column.flatten()
    if column.null_count:
        raise DataError(
            f"{where}: a row from {start} to {start + rows - 1} lacks a number: fill it in, or leave the row out"
        )
    if 0 in sizes:
        raise DataError(f"{where}: the lists are empty: give each row {_SHAPES}")
    return torch.from_dlpack(column).reshape(rows, *([1] if len(sizes) == 1 else []), *sizes)


def _uneven(where: str, first: object, other: object) -> str:
    return (
        f"{where}: rows differ in length ({first} and {other}): give every row as many vectors, all of one width "
        "(average them, cut them, or pad them)"
    )


def _of_one(path: Path, tensor: torch.Tensor, shape: list[int]) -> Vectors:
    _check_numbers(path, tensor)
    if len(shape) not in (2, 3):
        raise DataError(f"{path}: it has the shape {shape}: expected {_SHAPES}")
    if 0 in shape:
        raise DataError(f"{path}: it is empty, of the shape {shape}: expected {_SHAPES}")
    return Vectors(path, [tensor if tensor.ndim == 3 else tensor[:, None]], [shape[0]], None)


def _check_numbers(path: Path, tensor: torch.Tensor) -> None:
    if tensor.is_complex():
        raise DataError(f"{path}: its numbers are complex: give their real and imaginary parts, or their sizes")


def list_vector_files(source: Source) -> list[Path]:
    """Returns the table of captions, and the file of vectors."""
    return [*find_table(source.path), Path(str(source.features))]


def read_vector_table(source: Source) -> Iterator[Record | Problem]:
    """Yields a record for each row of a table of captions, whose `image` and `key` are the name of its vectors.

    The name is in the column `row` (numbers from 0) or, for vectors with ids, `id`, or in the one that
    `data.image_column` names. Several rows may be of one input. Without such a column the table's rows belong to the
    vectors in their order. For captions and splits, see `read_table`.

    Raises:
        DataError: The vectors or the table cannot be read, or do not match.
    """
    vectors = open_vectors(str(source.features), source.feature_column)
    looked_for = f"table of captions ({', '.join(TABLE_NAMES)}, or a file that ends in {', '.join(TABLE_SUFFIXES)})"
    table = the_one(find_table(source.path), source.path, looked_for)
    names = (ID_COLUMN if vectors.has_ids else ROW_COLUMN,)
    name_column = caption_column = ""
    count = 0
    for where, values in _read_rows(table):
        count += 1
        if isinstance(values, Problem):
            yield values
            continue
        if not caption_column:
            caption_column = find_column(values, source.caption_column, CAPTION_COLUMNS, "caption", where)
            if vectors.has_ids or source.image_column is not None or names[0] in values:
                name_column = find_column(values, source.image_column, names, "image", where)
        yield _record(vectors, where, values, count - 1, name_column, caption_column)
    if count == 0:
        raise DataError(f"{table}: the table has no rows")
    if not name_column and count != len(vectors):
        raise DataError(
            f"{table} has {count} rows, and {vectors.path} vectors for {len(vectors)}: give as many, in the same "
            f"order, or say with a column {ROW_COLUMN!r} which row of vectors, from 0, each caption is of"
        )


def _record(
    vectors: Vectors, where: str, values: dict[str, Any], number: int, name_column: str, caption_column: str
) -> Record | Problem:
    split = values.get(SPLIT_COLUMN)
    if SPLIT_COLUMN in values and (not isinstance(split, str) or not split.strip()):
        return Problem(where, f"the column {SPLIT_COLUMN!r} must hold text, and holds {preview(split)}")
    split = split.strip() if isinstance(split, str) else None
    name = str(values.get(name_column, "")).strip() if name_column else str(number)
    if (row := vectors.find(name)) is None and name_column:
        there = "its ids" if vectors.has_ids else f"0 to {len(vectors) - 1}"
        reason = (
            f"the column {name_column!r} holds {preview(name)}, and {vectors.path} has no such row ({there}): "
            "correct it"
        )
        return Problem(where, reason, name, split)
    if not (captions := as_captions(values.get(caption_column))):
        reason = f"the column {caption_column!r} must hold a caption or a list of captions, and holds "
        return Problem(where, f"{reason}{preview(values.get(caption_column))}", name, split)
    name = str(name if row is None else vectors.names[row])
    return Record(name, tuple(captions), name, where, split)


def _read_rows(table: Path) -> Iterator[tuple[str, dict[str, Any] | Problem]]:
    """Yields where a row is, and its values by column."""
    if table.suffix.lower() == ".parquet":
        number = 0
        dataset = open_parquet(table)
        kept = [name for name, kind in ((f.name, f.type) for f in dataset.data.schema) if _number_type(kind) is None]
        for batch in dataset.select_columns(kept).with_format("arrow").iter(1000):
            for values in batch.to_pylist():
                number += 1
                yield f"{table}, row {number}", {name.strip().lower(): value for name, value in values.items()}
    else:
        for row in (read_jsonl if table.suffix.lower() == ".jsonl" else read_csv)(table):
            yield (row.where, row) if isinstance(row, Problem) else (row.where, dict(row.values))


VECTORS = Format("a table of captions, with data.features", find_table, read_vector_table, files=list_vector_files)

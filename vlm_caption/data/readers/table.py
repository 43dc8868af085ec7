"""A table of images and captions: CSV, TSV, JSON lines, or Parquet; and the Hugging Face imagefolder made with one."""

import ast
import base64
import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import DataError
from ...core.files import is_file, is_folder
from ...core.text import first_line, is_utf8, preview, read_lines
from ...core.untrusted import load_json
from ..places import find_base64
from ..records import (
    ANSWER_COLUMNS,
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    ImageFolder,
    Problem,
    Record,
    Source,
    as_answers,
    as_captions,
    describe_unpaired,
    find_column,
    find_split,
    find_texts,
    list_subfolders,
    settle_names,
    the_one,
)
from .arrow import read_parquet
from .delimited import find_separator, read_cells

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TABLE_NAMES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.parquet", "captions.txt")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


@dataclass(frozen=True, slots=True)
class Row:
    """One row, with its values by column."""

    table: Path
    name: str
    values: Mapping[str, object]

    @property
    def where(self) -> str:
        return f"{self.table}, {self.name}"


def find_table(path: Path) -> list[Path]:
    """Returns the table that `path` is by its ending, or holds by name."""
    if is_folder(path):
        return [path / name for name in TABLE_NAMES if is_file(path / name)]
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return [] if is_results(first_line(path)) else [path]
    if suffix == ".jsonl":
        return [] if is_conversation(first_line(path)) else [path]
    return [path] if suffix in TABLE_SUFFIXES or (suffix == ".txt" and _is_headed(path)) else []


def is_results(line: str) -> bool:
    """Returns whether a line is one of Flickr30k's `results.csv`: a name, a number or its heading, and a caption."""
    fields = [field.strip().lower() for field in line.split("|")]
    return len(fields) >= 3 and (fields[1].isdecimal() or fields[1] == "comment_number")


def is_conversation(line: str) -> bool:
    """Returns whether a line of JSON is a conversation, such as LLaVA's and those of chat models."""
    try:
        values = load_json(line, "")
    except DataError:
        return False
    return isinstance(values, dict) and not values.keys().isdisjoint(("conversations", "messages"))


def list_table_files(source: Source) -> list[Path]:
    """Returns the table alone."""
    return find_table(source.path) or find_metadata(source.path)


def read_table(source: Source) -> Iterator[Record | Problem]:
    """Yields a record for each row of a table.

    The columns are found by name (`IMAGE_COLUMNS`, `CAPTION_COLUMNS`), whatever the case, unless they are given. An
    image is a path, relative to the table's folder or the one folder in it that holds the pictures; or base64; or
    bytes (Parquet). A caption is a string or, in JSON lines and Parquet, a list of strings as well. Where questions
    are read, a column has them, beside one of answers (`ANSWER_COLUMNS`). A column `split` names the row's split.

    Raises:
        DataError: The table cannot be read, or lacks a column.
    """
    looked_for = f"table ({', '.join(TABLE_NAMES)}, or a file that ends in {', '.join(TABLE_SUFFIXES)})"
    table = the_one(list_table_files(source), source.path, looked_for)
    folder = ImageFolder(source, [table.parent, *list_subfolders(table.parent)])
    yield from _read_one(table, source, folder, None)
    folder.check()


def find_metadata(path: Path) -> list[Path]:
    """Returns the `metadata.*` of a Hugging Face imagefolder: in the folder, or in those of its splits."""
    if not is_folder(path):
        return []
    return [
        folder / name for folder in [path, *list_subfolders(path)] for name in METADATA_NAMES if is_file(folder / name)
    ]


def read_imagefolder(source: Source) -> Iterator[Record | Problem]:
    """Yields a record for each row of the metadata files, see `read_table`, with paths relative to each.

    A subfolder with its own metadata is a split by its name: `train/metadata.csv`, `validation/metadata.jsonl`.

    Raises:
        DataError: A file cannot be read, lacks a column, or there are two in one folder.
    """
    tables = find_metadata(source.path)
    folders = list(dict.fromkeys(table.parent for table in tables))
    names = [find_split(folder.name) if folder != source.path else None for folder in folders]
    splits = dict(zip(folders, settle_names(names), strict=True))
    for folder in folders:
        table = the_one([table for table in tables if table.parent == folder], folder, "metadata file")
        split = splits[folder]
        images = ImageFolder(source, [folder], source.path)
        yield from _read_one(table, source, images, split)
        images.check()
    if not tables:
        raise DataError(f"{source.path}: it holds no metadata file ({', '.join(METADATA_NAMES)})")


def _read_one(table: Path, source: Source, folder: ImageFolder, split: str | None) -> Iterator[Record | Problem]:
    if table.suffix.lower() == ".parquet":
        yield from read_parquet([table], source, folder, split)
        return
    read_rows: Callable[[Path], Iterator[Row | Problem]] = read_jsonl if table.suffix.lower() == ".jsonl" else read_csv
    columns: tuple[str, str, str | None] | None = None
    fault: Problem | None = None
    for row in read_rows(table):
        if isinstance(row, Problem):
            fault = fault or row
            yield row
            continue
        if columns is None:
            columns = (
                find_column(row.values, source.image_column, IMAGE_COLUMNS, "image", row.where),
                *find_texts(row.values, source, row.where),
            )
        yield _record(row, *columns, folder, split)
    if columns is None:
        raise DataError(str(fault or f"{table}: the table has no rows"))


def _record(
    row: Row,
    image_column: str,
    caption_column: str,
    question_column: str | None,
    folder: ImageFolder,
    split: str | None,
) -> Record | Problem:
    if SPLIT_COLUMN in row.values:
        value = row.values[SPLIT_COLUMN]
        if not isinstance(value, str) or not value.strip():
            return Problem(row.where, f"the column {SPLIT_COLUMN!r} must hold text, and holds {preview(value)}")
        split = value.strip()
    image = row.values.get(image_column)
    if not isinstance(image, str) or not image.strip():
        reason = f"the column {image_column!r} must hold a path or base64 text, and holds {preview(image)}"
        return Problem(row.where, reason, split=split)
    questions: list[str] = []
    if question_column is None:
        captions = as_captions(row.values.get(caption_column))
    else:
        questions, captions = as_answers(row.values.get(question_column), row.values.get(caption_column))
    if not captions and question_column is not None:
        question, answers = row.values.get(question_column), row.values.get(caption_column)
        reason = describe_unpaired(question_column, caption_column, question, answers)
        return Problem(row.where, reason, split=split)
    if not captions:
        reason = (
            f"the column {caption_column!r} must hold a caption, or a list of captions, and holds "
            f"{preview(row.values.get(caption_column))}"
        )
        return Problem(row.where, reason, split=split)
    encoded = find_base64(image)
    if encoded is None:
        return folder.record(image, captions, row.where, split, questions)
    try:
        content = base64.b64decode(encoded)
    except ValueError as error:
        return Problem(row.where, f"the column {image_column!r} holds broken base64 ({error})", split=split)
    key = hashlib.sha256(content).hexdigest()
    return Record("", tuple(captions), key, row.where, split, tuple(questions), content)


def read_csv(table: Path) -> Iterator[Row | Problem]:
    """Yields the rows of a CSV or TSV; see `read_cells`.

    Raises:
        DataError: The header is malformed, or the file cannot be read.
    """
    header: list[str] = []
    for number, cells in enumerate(read_cells(table), start=1):
        name = f"row {number}"
        problem = None
        if isinstance(cells, str):
            problem = Problem(f"{table}, {name}", cells)
        elif not all(map(is_utf8, cells)):
            problem = Problem(str(table), f"the file is not UTF-8 ({name}): save it as UTF-8")
        elif cells and header and len(cells) != len(header):
            reason = f"{len(cells)} field{'s' * (len(cells) > 1)}, and the header has {len(header)}: "
            if len(cells) > len(header):
                reason += 'put a field that holds the separator between quotation marks (")'
            else:
                reason += "add what is missing"
            problem = Problem(f"{table}, {name}", reason)
        elif cells and header:
            yield Row(table, name, dict(zip(header, map(_spelt_out, cells), strict=True)))
        elif cells:
            header = _read_header(cells, table)
        if problem is not None:
            if not header:
                raise DataError(str(problem))
            yield problem


def _read_header(cells: list[str], table: Path) -> list[str]:
    """Returns the names of the columns.

    Raises:
        DataError: A column is there twice.
    """
    header = [_column(cell) for cell in cells]
    if repeated := [name for name in header if name and header.count(name) > 1]:
        raise DataError(
            f"{table}: the column {repeated[0]!r} is there more than once: give each caption a row of its own"
        )
    return header


def read_jsonl(table: Path) -> Iterator[Row | Problem]:
    """Yields the objects of JSON lines, as rows; a line that is no object is a problem.

    Raises:
        DataError: The file cannot be read.
    """
    for number, line in read_lines(table, "surrogateescape"):
        if not line.strip():
            continue
        if not is_utf8(line):
            yield Problem(str(table), f"the file is not UTF-8 (line {number}): save it as UTF-8")
            continue
        where = f"{table}, line {number}"
        try:
            values = load_json(line, where)
        except DataError as error:
            yield Problem(where, f"{str(error).removeprefix(f'{where}: ')}: write one object a line")
            continue
        if not isinstance(values, dict):
            yield Problem(where, "this is not a JSON object: write one object a line")
            continue
        columns = {_column(key): value for key, value in values.items()}
        if len(columns) < len(values):
            yield Problem(where, f"two of its names differ only in their capitals or spaces: {preview(list(values))}")
        else:
            yield Row(table, f"line {number}", columns)


def _spelt_out(cell: str) -> str | list[str]:
    """Returns the list of strings that a CSV writer such as pandas has spelt out in a cell, or the cell as it is."""
    if cell.lstrip()[:2] not in ('["', "['"):
        return cell
    for parse in (json.loads, ast.literal_eval):
        with contextlib.suppress(ValueError, SyntaxError, RecursionError, MemoryError):
            values = parse(cell.strip())
            if isinstance(values, list) and values and all(isinstance(value, str) for value in values):
                return values
    return cell


def _column(name: str) -> str:
    return name.strip().lower()


def _is_headed(path: Path) -> bool:
    """Returns whether a text file is a CSV with known columns: Kaggle's Flickr8k calls its table captions.txt."""
    columns = {_column(cell) for cell in first_line(path).split(find_separator(path))}
    return bool(columns & set(IMAGE_COLUMNS)) and bool(columns & set(ANSWER_COLUMNS))

"""A table of images and captions: CSV, TSV, JSON lines, or Parquet; and the Hugging Face imagefolder made with one."""

import ast
import contextlib
import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ...core.errors import DataError
from ...core.text import first_line, read_lines
from ..places import Place, digest_base64, find_base64
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

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", ".parquet")
TABLE_NAMES = ("captions.csv", "captions.tsv", "captions.jsonl", "captions.parquet", "captions.txt")
METADATA_NAMES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")

# The longest field of a CSV, in characters: a base64 picture. csv's own limit is 131,072.
_FIELD_LIMIT = 1 << 26


@dataclass(frozen=True, slots=True)
class Row:
    """One row: its values by column, and the bytes of the file that it was read from, from `offset` on."""

    table: Path
    name: str
    values: Mapping[str, object]
    offset: int
    content: bytes

    @property
    def where(self) -> str:
        return f"{self.table}, {self.name}"


def find_table(path: Path) -> list[Path]:
    """The table that `path` is by its ending, or holds by name."""
    if path.is_dir():
        return [path / name for name in TABLE_NAMES if (path / name).is_file()]
    suffix = path.suffix.lower()
    if suffix == ".csv":
        return [path] if first_line(path).count("|") != 2 else []  # that would be Flickr30k's results.csv
    return [path] if suffix in TABLE_SUFFIXES or (suffix == ".txt" and _is_headed(path)) else []


def list_table_files(source: Source) -> list[Path]:
    """The table alone."""
    return find_table(source.path) or find_metadata(source.path)


def read_table(source: Source) -> Iterator[Record | Problem]:
    """Yield a record for each row of a table.

    The columns are found by name (`IMAGE_COLUMNS`, `CAPTION_COLUMNS`), whatever the case, unless they are given. An
    image is a path, relative to the table's folder or the one folder in it that holds the pictures; or base64; or
    bytes (Parquet). A caption is a string or, in JSON lines and Parquet, a list of strings as well. Where questions
    are read, a column has them, beside one of answers (`ANSWER_COLUMNS`). A column `split` says which split a row is
    of. CSV and TSV quote alike: a field that starts with `"` ends with one.

    Raises:
        DataError: The table cannot be read, or lacks a column.
    """
    looked_for = f"table ({', '.join(TABLE_NAMES)}, or a file that ends in {', '.join(TABLE_SUFFIXES)})"
    table = the_one(list_table_files(source), source.path, looked_for)
    folder = ImageFolder(source, [table.parent, *list_subfolders(table.parent)])
    yield from _read_one(table, source, folder, None)
    folder.check()


def find_metadata(path: Path) -> list[Path]:
    """The `metadata.*` of a Hugging Face imagefolder: in the folder, or in those of its splits."""
    if not path.is_dir():
        return []
    return [
        folder / name
        for folder in [path, *list_subfolders(path)]
        for name in METADATA_NAMES
        if (folder / name).is_file()
    ]


def read_imagefolder(source: Source) -> Iterator[Record | Problem]:
    """Yield a record for each row of the metadata files, as of `read_table`, with paths relative to each.

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
    row = None
    for row in read_rows(table):
        if isinstance(row, Problem):
            yield row
            continue
        if columns is None:
            columns = (
                find_column(row.values, source.image_column, IMAGE_COLUMNS, "image", row.where),
                *find_texts(row.values, source, row.where),
            )
        yield _record(row, *columns, folder, split)
    if row is None:
        raise DataError(f"{table}: the table has no rows")


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
            return Problem(row.where, f"the column {SPLIT_COLUMN!r} must hold text, and holds {value!r}")
        split = value.strip()
    image = row.values.get(image_column)
    if not isinstance(image, str) or not image.strip():
        reason = f"the column {image_column!r} must hold a path or base64 text, and holds {image!r:.80}"
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
            f"{row.values.get(caption_column)!r:.80}"
        )
        return Problem(row.where, reason, split=split)
    encoded = find_base64(image)
    if encoded is None:
        return folder.record(image.strip(), captions, row.where, split, questions)
    # Some writers of JSON escape the slash; decoding passes over the backslash.
    for written in (encoded.encode(), encoded.replace("/", "\\/").encode()):
        start = row.content.find(written)
        if start >= 0:
            place = Place(str(row.table), row.name, row.offset + start, len(written), is_base64=True)
            key = digest_base64(encoded)
            return Record(str(place), tuple(captions), key, row.where, split, tuple(questions))
    reason = f"the base64 in the column {image_column!r} is written with escapes: write it plainly"
    return Problem(row.where, reason, split=split)


class _CsvLines:
    """Feeds a table's lines to csv, and keeps those that the row at hand is made of."""

    def __init__(self, table: Path):
        self._lines = read_lines(table)
        self._of_row: list[tuple[int, bytes]] = []

    def __iter__(self) -> "_CsvLines":
        return self

    def __next__(self) -> str:
        _, offset, content, text = next(self._lines)
        self._of_row.append((offset, content))
        return text

    def end_row(self) -> tuple[int, bytes]:
        """The offset and the bytes of the row that csv has just given."""
        offset, content = self._of_row[0][0], b"".join(content for _, content in self._of_row)
        self._of_row = []
        return offset, content


def read_csv(table: Path) -> Iterator[Row | Problem]:
    """Yield the rows of a CSV or TSV.

    Raises:
        DataError: It is malformed.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    lines = _CsvLines(table)
    # Strict: a stray quotation mark is an error, where csv would else swallow the rows up to the next one.
    reader = csv.reader(lines, delimiter="\t" if table.suffix.lower() == ".tsv" else ",", strict=True)
    header: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            offset, content = lines.end_row()
            if not header:
                header = [_column(cell) for cell in cells]
                if repeated := [name for name in header if name and header.count(name) > 1]:
                    raise DataError(
                        f"{table}: the column {repeated[0]!r} is there more than once: give each caption a row of its "
                        "own"
                    )
            elif cells and len(cells) != len(header):
                reason = (
                    f"{len(cells)} fields, and the header has {len(header)}: put a field that holds the separator "
                    'between quotation marks (")'
                )
                yield Problem(f"{table}, row {number}", reason)
            elif cells:
                values = dict(zip(header, map(_spelt_out, cells), strict=True))
                yield Row(table, f"row {number}", values, offset, content)
    except csv.Error as error:
        raise DataError(
            f"{table}, row {number + 1}: {error}: double the quotation marks inside a quoted field"
        ) from error


def read_jsonl(table: Path) -> Iterator[Row | Problem]:
    """Yield the objects of JSON lines, as rows.

    Raises:
        DataError: A line is none.
    """
    for number, offset, content, line in read_lines(table):
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            values = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: this is not JSON ({error}): write one object a line") from error
        if not isinstance(values, dict):
            raise DataError(f"{where}: this is not a JSON object: write one object a line")
        yield Row(table, f"line {number}", {_column(key): value for key, value in values.items()}, offset, content)


def _spelt_out(cell: str) -> str | list[str]:
    """The list of strings that a CSV writer has spelt out in a cell (pandas does), or the cell as it is."""
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
    """Whether a text file is a CSV with known columns: Kaggle's Flickr8k calls its table captions.txt."""
    columns = {_column(cell) for cell in first_line(path).split(",")}
    return bool(columns & set(IMAGE_COLUMNS)) and bool(columns & set(ANSWER_COLUMNS))

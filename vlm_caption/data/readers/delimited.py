"""The rows of CSV and TSV files, as careful and as careless tools write them."""

import contextlib
import csv
from collections.abc import Iterator
from pathlib import Path

from ...core.text import first_line, read_lines
from ...images.opening import IMAGE_SUFFIXES
from ..records import ANSWER_COLUMNS, IMAGE_COLUMNS, SPLIT_COLUMN

# The longest field, in characters: a base64 picture. csv's own limit is 131,072.
_FIELD_LIMIT = 1 << 26

# The separators of a .csv, the likeliest first. The header decides.
_SEPARATORS = (",", ";", "\t", "|")

# A quoted field goes on over no more lines than this.
_MOST_LINES = 1000


def read_cells(table: Path) -> Iterator[list[str] | str]:
    """Yields the cells of each row, or says in words what is wrong with a row.

    A field that starts with `"` ends with one, on the same line or a later one. A stray quotation mark costs its own
    row at most: the lines after it are rows of their own again. In a TSV, where most tools quote nothing, it is a
    character like any other.

    Args:
        table: A file in UTF-8. Other bytes are decoded with `surrogateescape`; see `core.text.is_utf8`.

    Yields:
        First the header. A row without text has no cells.

    Raises:
        DataError: The file cannot be read.
    """
    csv.field_size_limit(max(csv.field_size_limit(), _FIELD_LIMIT))
    lines = _Lines(table)
    reader = lines.parse(lines)
    while True:
        lines.of_row = []
        try:
            cells = next(reader, None)
        except csv.Error as error:
            reader = lines.parse(lines)
            cells = lines.read_literally()
            if cells is None:
                yield f"{error}: double the quotation marks inside a quoted field"
                continue
        if cells is None:
            return
        cells = cells if any(cell.strip() for cell in cells) else []
        lines.width = lines.width or len(cells)
        yield cells


def find_separator(table: Path) -> str:
    """Returns the separator with which the header names the most columns that are known; a tab for a .tsv."""
    if table.suffix.lower() == ".tsv":
        return "\t"
    line = first_line(table).partition("\r")[0]
    known = {*IMAGE_COLUMNS, *ANSWER_COLUMNS, SPLIT_COLUMN}

    def count(separator: str) -> tuple[int, int]:
        columns = [cell.strip().strip('"').strip().lower() for cell in line.split(separator)]
        return len(known.intersection(columns)), len(columns)

    return max(_SEPARATORS, key=count)


class _Lines:
    """Feeds a table's lines to csv, and keeps those of the row at hand, so that a row can be read again otherwise.

    Attributes:
        of_row: The lines of the row at hand.
        width: The number of columns; 0 before the header.
    """

    def __init__(self, table: Path):
        self._separator = find_separator(table)
        self._lines = _split_lines(table)
        self._back: list[str] = []
        self.of_row: list[str] = []
        self.width = 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = self._back.pop() if self._back else next(self._lines)
        if self.of_row and (self._is_row(line) or len(self.of_row) == _MOST_LINES):
            self._back.append(line)
            raise csv.Error("a quotation mark is opened and not closed")
        self.of_row.append(line)
        return line

    def parse(self, lines: Iterator[str], literal: bool = False) -> Iterator[list[str]]:
        """Returns csv's reader. It is strict, for a stray quotation mark swallows rows otherwise."""
        quoting = csv.QUOTE_NONE if literal else csv.QUOTE_MINIMAL
        return csv.reader(lines, delimiter=self._separator, quoting=quoting, strict=True)

    def read_literally(self) -> list[str] | None:
        """Gives back all lines of the row but its first one.

        Returns:
            The first one's cells, of a TSV whose quotation marks are characters; else None.
        """
        first, *rest = self.of_row
        self._back += reversed(rest)
        cells = next(self.parse(iter([first]), literal=True), []) if self._separator == "\t" else []
        return cells if self.width and len(cells) == self.width else None

    def _is_row(self, line: str) -> bool:
        """Returns whether a line inside a quoted field is a row: it has all columns and a picture's path."""
        with contextlib.suppress(csv.Error):
            cells = next(self.parse(iter([line])), [])
            return len(cells) == self.width > 1 and any(_is_picture(cell) for cell in cells)
        return False


def _split_lines(table: Path) -> Iterator[str]:
    """Yields the lines of a table. A lone carriage return ends a line in a file of an old Mac, and else is a space."""
    is_old_mac = False
    for number, line in read_lines(table, "surrogateescape"):
        body = line.removesuffix("\n").removesuffix("\r")
        is_old_mac = is_old_mac or (number == 1 and "\r" in body)
        if "\r" not in body:
            yield line
        elif is_old_mac:
            yield from (f"{part}\n" for part in body.split("\r"))
        else:
            yield body.replace("\r", " ") + "\n"


def _is_picture(cell: str) -> bool:
    """Returns whether a cell holds a picture's path, by its ending."""
    return Path(cell.strip()).suffix.lower() in IMAGE_SUFFIXES

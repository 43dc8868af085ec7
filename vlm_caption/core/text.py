"""Reads text files in UTF-8 and nothing else, and makes text fit for messages, tables and other programs."""

import os
import re
import reprlib
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError
from .files import open_regular

_BOM = b"\xef\xbb\xbf"

# In bytes. A line with a picture in base64 is long.
_LONGEST_LINE = 1 << 28

# A cell that begins with one of these is a formula to a spreadsheet.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r", "\n")

# What `surrogateescape` makes of bytes that are not UTF-8.
_ESCAPED_BYTE = re.compile("[\udc80-\udcff]")

_PREVIEW = reprlib.Repr()
_PREVIEW.maxstring = _PREVIEW.maxother = _PREVIEW.maxlong = 80


def read_lines(path: Path, errors: str = "strict") -> Iterator[tuple[int, str]]:
    """Yields each line of a UTF-8 file, with or without a byte order mark, its end included.

    Only `\\n` ends a line: other separators of Unicode occur inside captions.

    Args:
        path: A regular file; a pipe or a device is refused.
        errors: "strict", or "surrogateescape" to let lines through that are not UTF-8; see `is_utf8`.

    Yields:
        The line's number, from 1, and its text.

    Raises:
        DataError: The file cannot be read, is not UTF-8, or has a line that is too long.
    """
    try:
        with open_regular(path) as file:
            number = 0
            while line := file.readline(_LONGEST_LINE + 1):
                number += 1
                if len(line) > _LONGEST_LINE:
                    raise DataError(f"{path}, line {number}: the line is longer than {_LONGEST_LINE:,} bytes")
                yield number, (line.removeprefix(_BOM) if number == 1 else line).decode("utf-8", errors)
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the file is not UTF-8 (line {number}): save it as UTF-8") from error


def is_utf8(text: str) -> bool:
    """Returns whether a text that was decoded with `surrogateescape` was UTF-8."""
    return text.isascii() or _ESCAPED_BYTE.search(text) is None


def read_text(path: Path) -> str:
    """Reads a whole UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    return "".join(text for _, text in read_lines(path))


def first_line(path: Path) -> str:
    """Returns the first line of a text file, or nothing for any other file."""
    try:
        return next((text for _, text in read_lines(path)), "")
    except DataError:
        return ""


def readable(name: str) -> str:
    """Returns a file's name as valid text. Bytes that are not UTF-8 are written as `\\xff`."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return name.encode("utf-8", "backslashreplace").decode()


def preview(value: object) -> str:
    """Returns a value as Python writes it, cut to a length that fits a message."""
    return f"{_PREVIEW.repr(value):.80}"


def defuse_formula(cell: str) -> str:
    """Returns a cell's text for a CSV file, with `'` in front where a spreadsheet would run it as a formula.

    This is what OWASP recommends against CSV injection: https://owasp.org/www-community/attacks/CSV_Injection.
    """
    return f"'{cell}" if cell.startswith(_FORMULA_STARTS) else cell

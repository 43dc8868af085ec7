"""Text files in UTF-8, and text that other programs can read."""

import os
from collections.abc import Iterator
from pathlib import Path

from .errors import DataError

_BOM = b"\xef\xbb\xbf"


def read_lines(path: Path) -> Iterator[tuple[int, int, bytes, str]]:
    """Yield each line of a UTF-8 file, with or without a byte order mark, its end included.

    Only `\\n` ends a line: other separators of Unicode occur inside captions.

    Yields:
        Its number from 1, its offset in bytes, its bytes, and its text.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    offset = 0
    try:
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                content = line.removeprefix(_BOM) if offset == 0 else line
                offset += len(line) - len(content)
                yield number, offset, content, content.decode("utf-8")
                offset += len(content)
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the file is not UTF-8 (line {number}): save it as UTF-8") from error


def read_text(path: Path) -> str:
    """Read a whole UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    return "".join(text for _, _, _, text in read_lines(path))


def first_line(path: Path) -> str:
    """The first line of a text file; of any other file, nothing."""
    try:
        return next((text for _, _, _, text in read_lines(path)), "")
    except DataError:
        return ""


def readable(name: str) -> str:
    """Returns a file's name as valid text: bytes of it that are no UTF-8 are written as `\\xff`."""
    try:
        return os.fsencode(name).decode("utf-8", "backslashreplace")
    except UnicodeEncodeError:  # surrogates that stand for no byte
        return name.encode("utf-8", "backslashreplace").decode()


def defuse_formula(cell: str) -> str:
    """Returns a cell of a CSV file that spreadsheets take for text, and not for a formula.

    A cell that begins like a formula gets an apostrophe in front, as OWASP advises
    (https://owasp.org/www-community/attacks/CSV_Injection).
    """
    return f"'{cell}" if cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell

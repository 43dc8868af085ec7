"""What every reader yields, and the one cleaning of captions."""

import re
from dataclasses import dataclass
from pathlib import Path

# The space before a mark that stands alone (" ." but not " .5" or " ..."), before "'s", and inside round brackets.
_TOKENIZER_SPACE = re.compile(r" (?=[.,;:!?)](?: |$)|'s(?![\w']))|(?<=\() ")


class DataError(ValueError):
    """Captioned images cannot be read: the message names the file and says what to do."""


@dataclass(frozen=True, slots=True)
class CaptionedImage:
    """One image and its cleaned captions, at least one."""

    image: str
    captions: tuple[str, ...]


def clean_caption(text: str) -> str:
    """Undo a tokenized corpus's spacing: "A dog 's bone , in  the way .\\n" becomes "A dog's bone, in the way.".

    Runs of whitespace become one space, none is left at the ends, and none before a free-standing `.` `,` `;` `:` `!`
    `?` `)`, before `'s`, or after `(`. Quotation marks keep their spaces, for opening and closing ones look alike.
    Every other character stays, in its order and case; cleaning twice changes nothing more.
    """
    return _TOKENIZER_SPACE.sub("", " ".join(text.split()))


def read_text(path: Path) -> str:
    """Read a whole UTF-8 file, with or without a byte order mark.

    Raises:
        DataError: The file cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DataError(f"{path}: the file cannot be read ({error.strerror or error})") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: the file is not UTF-8 (byte {error.start}): save it as UTF-8") from error

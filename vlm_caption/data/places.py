"""Where a picture is: a file, or a stretch of one.

Pictures are referenced, never copied. Many formats keep them inside larger files: tar shards, Arrow tables, base64 in
a CSV. All of these come down to a number of bytes from an offset, so any picture of a corpus is read with one `seek`
and one `read`, in any order and in any process, whatever the format.
"""

import base64
import binascii
import hashlib
import io
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..core.errors import ImageError, ImageTooLargeError
from ..images.opening import MAX_BYTES

# As in "shards/000.tar#0001.jpg@1536+20480" and "inputs.csv#row 2@35+1200;base64".
_STRETCH = re.compile(r"(.+)#([^#]*)@(\d+)\+(\d*)(;base64)?", re.DOTALL)

# How the base64 of JPEG, PNG, GIF, RIFF (WebP), BMP and TIFF files begins. No path has that many letters and no dot.
_BASE64_PICTURE = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkq|TU0AK)[A-Za-z0-9+/\s]{40,}={0,2}\s*")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture's encoded bytes are. `str(place)` is what a dataset's column `image` holds: for a whole file its
    path, so that most corpora have plain paths there.

    Attributes:
        path: The file.
        name: Of the picture inside the file, for people: a tar's member, "row 7".
        offset: Where it starts, in bytes.
        size: How long it is, in bytes; None: to the file's end.
        is_base64: Whether those bytes are base64.
    """

    path: str
    name: str = ""
    offset: int = 0
    size: int | None = None
    is_base64: bool = False

    @classmethod
    def parse(cls, text: str) -> "Place":
        """The place that `str(place)` came from."""
        match = _STRETCH.fullmatch(text)
        if not match:
            return cls(text)
        path, name, offset, size, is_base64 = match.groups()
        name = name.replace("%23", "#").replace("%25", "%")
        return cls(path, name, int(offset), int(size) if size else None, is_base64 is not None)

    def __str__(self) -> str:
        if self.is_whole_file and not _STRETCH.fullmatch(self.path):
            return self.path
        name = self.name.replace("%", "%25").replace("#", "%23")
        size = "" if self.size is None else self.size
        return f"{self.path}#{name}@{self.offset}+{size}{';base64' if self.is_base64 else ''}"

    @property
    def is_whole_file(self) -> bool:
        """Whether the file holds this picture and nothing else."""
        return self.offset == 0 and self.size is None and not self.is_base64

    @property
    def described(self) -> str:
        """The place in words, for messages: "shards/000.tar, 0001.jpg"."""
        return f"{self.path}, {self.name}" if self.name else self.path

    @property
    def short_name(self) -> str:
        """The picture's name without its folders."""
        name = Path(self.path).name
        return f"{name}, {self.name}" if self.name else name

    def read(self, max_bytes: int = MAX_BYTES) -> bytes:
        """The picture's encoded bytes.

        Args:
            max_bytes: The most bytes to accept; checked before any is read.

        Raises:
            ImageTooLargeError: There are more than `max_bytes`.
            ImageError: The file cannot be read, ends too early, or does not hold base64.
        """
        try:
            with Path(self.path).open("rb") as file:
                size = os.fstat(file.fileno()).st_size - self.offset if self.size is None else self.size
                if (size // 4 * 3 - 2 if self.is_base64 else size) > max_bytes:  # padding is up to 2 bytes
                    raise ImageTooLargeError(
                        self.described, f"the file has more than {max_bytes} bytes, which is the limit"
                    )
                file.seek(self.offset)
                content = file.read(-1 if self.size is None else self.size)
        except OSError as error:
            raise ImageError(self.described, f"the file cannot be read ({error.strerror or error})") from error
        if self.size is not None and len(content) < self.size:
            raise ImageError(self.described, "the file has become shorter since it was first read")
        if not self.is_base64:
            return content
        try:
            return base64.b64decode(content)
        except binascii.Error as error:
            raise ImageError(self.described, f"this is not base64 ({error})") from error


class NamedBytes(io.BytesIO):
    """Bytes that error messages can name, by the attribute that files have."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def open_place(image: str, max_bytes: int = MAX_BYTES) -> str | BinaryIO:
    """What `open_image` takes, for an entry of a dataset's column `image`: a path, or an open file with a name.

    Args:
        image: The entry.
        max_bytes: As of `Place.read`; a path's file is for `open_image` to check.

    Raises:
        ImageError: The file that holds the picture cannot be read.
    """
    place = Place.parse(image)
    return place.path if place.is_whole_file else NamedBytes(place.read(max_bytes), place.described)


def find_base64(text: str) -> str | None:
    """The base64 of a picture in a table's cell, without the head of a `data:` URL; None if the cell is a path."""
    text = text.strip()
    if head := _DATA_URL.match(text):
        return text[head.end() :]
    return text if _BASE64_PICTURE.fullmatch(text) else None


def digest_base64(encoded: str) -> str:
    """SHA-256, as hex, of the bytes behind base64. Where it is broken, of the text: opening the picture tells."""
    try:
        content = base64.b64decode(encoded)
    except binascii.Error:
        content = encoded.encode()
    return hashlib.sha256(content).hexdigest()

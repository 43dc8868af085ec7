"""Where a picture is: a file, or a stretch of one.

Pictures are referenced, not copied. Many formats keep them inside larger files: tar shards, Arrow tables, zips. All of
these come down to a number of bytes from an offset, so any picture of a corpus is read with one `seek` and one
`read`, in any order and in any process, whatever the format.
"""

import base64
import binascii
import hashlib
import io
import os
import re
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from ..core.errors import ImageError, ImageTooLargeError
from ..core.files import open_regular
from ..images.limits import MAX_BYTES

# As in "shards/000.tar#0001.jpg@1536+20480", "rows.arrow#row 2@35+1200;base64" and "a.zip#1.png@30+400;deflate".
_STRETCH = re.compile(r"(.+)#([^#]*)@(\d+)\+(\d*)(;base64|;deflate)?", re.DOTALL)

# How the base64 of JPEG, PNG, GIF, RIFF (WebP), BMP and TIFF files begins. No path has that many letters and no dot.
_BASE64_PICTURE = re.compile(r"(?:/9j/|iVBORw0KGgo|R0lGOD|UklGR|Qk|SUkq|TU0AK)[A-Za-z0-9+/\s]{40,}={0,2}\s*")
_DATA_URL = re.compile(r"data:image/[\w.+-]+;base64,")


@dataclass(frozen=True, slots=True)
class Place:
    """Where a picture's encoded bytes are.

    `str(place)` is what a dataset's column `image` holds. For a whole file that is its path, so most corpora have
    plain paths there.

    Attributes:
        path: The file.
        name: The picture's name inside the file, for people: a tar's member, "row 7".
        offset: Where the picture starts, in bytes.
        size: How long it is, in bytes; None: up to the file's end.
        is_base64: Whether those bytes are base64.
        is_deflated: Whether they are compressed, as in a zip archive.
    """

    path: str
    name: str = ""
    offset: int = 0
    size: int | None = None
    is_base64: bool = False
    is_deflated: bool = False

    @classmethod
    def parse(cls, text: str) -> "Place":
        """Returns the place that `str(place)` came from."""
        match = _STRETCH.fullmatch(text)
        if not match:
            return cls(text)
        path, name, offset, size, coding = match.groups()
        name = name.replace("%23", "#").replace("%25", "%")
        return cls(path, name, int(offset), int(size) if size else None, coding == ";base64", coding == ";deflate")

    def __str__(self) -> str:
        if self.is_whole_file and not _STRETCH.fullmatch(self.path):
            return self.path
        name = self.name.replace("%", "%25").replace("#", "%23")
        size = "" if self.size is None else self.size
        coding = ";base64" if self.is_base64 else ";deflate" if self.is_deflated else ""
        return f"{self.path}#{name}@{self.offset}+{size}{coding}"

    @property
    def is_whole_file(self) -> bool:
        """Whether the file holds this picture and nothing else."""
        return self.offset == 0 and self.size is None and not self.is_base64 and not self.is_deflated

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
        """Returns the picture's encoded bytes.

        Args:
            max_bytes: The largest number of bytes to accept; checked before any is read.

        Raises:
            ImageTooLargeError: There are more than `max_bytes`.
            ImageError: The file cannot be read, is not a regular file, ends too early, or holds something else.
        """
        too_large = ImageTooLargeError(self.described, f"the file has more than {max_bytes} bytes, which is the limit")
        try:
            with open_regular(self.path) as file:
                size = os.fstat(file.fileno()).st_size - self.offset if self.size is None else self.size
                if (size // 4 * 3 - 2 if self.is_base64 else size) > max_bytes:  # padding is up to 2 bytes
                    raise too_large
                file.seek(self.offset)
                content = file.read(-1 if self.size is None else self.size)
        except OSError as error:
            raise ImageError(self.described, f"the file cannot be read ({error.strerror or error})") from error
        except MemoryError as error:
            raise ImageError(self.described, "the picture needs more memory than there is") from error
        if self.size is not None and len(content) < self.size:
            raise ImageError(self.described, "the file has become shorter since it was first read")
        try:
            if self.is_base64:
                return base64.b64decode(content)
            if self.is_deflated:
                inflate = zlib.decompressobj(-zlib.MAX_WBITS)
                content = inflate.decompress(content, max_bytes + 1)
                if len(content) > max_bytes:
                    raise too_large
                if not inflate.eof:
                    raise zlib.error("it is cut short")
        except binascii.Error as error:
            raise ImageError(self.described, f"this is not base64 ({error})") from error
        except zlib.error as error:
            raise ImageError(self.described, f"the archive is damaged here ({error})") from error
        return content


class NamedBytes(io.BytesIO):
    """Bytes that error messages can name, by the attribute that files have."""

    def __init__(self, content: bytes, name: str):
        super().__init__(content)
        self.name = name


def open_place(image: str, max_bytes: int = MAX_BYTES) -> str | BinaryIO:
    """Returns what `open_image` takes for an entry of a dataset's column `image`: a path, or an open file with a name.

    Args:
        image: The entry.
        max_bytes: See `Place.read`. The file of a path is checked by `open_image`.

    Raises:
        ImageError: The file that holds the picture cannot be read.
    """
    place = Place.parse(image)
    return place.path if place.is_whole_file else NamedBytes(place.read(max_bytes), place.described)


def row_name(image: str, is_vector: bool) -> str:
    """Returns what people are shown as a row's name: a picture's name without folders, or a vector's own name.

    Args:
        image: An entry of a dataset's column `image`.
        is_vector: Whether it names a vector. Such a name may look like a path: that of a molecule, "C/C=C/C".
    """
    return image if is_vector else Place.parse(image).short_name


def find_base64(text: str) -> str | None:
    """Returns the base64 of a picture in a table's cell, without the head of a `data:` URL; None for a path."""
    text = text.strip()
    if head := _DATA_URL.match(text):
        return text[head.end() :]
    return text if _BASE64_PICTURE.fullmatch(text) else None


def digest_base64(encoded: str) -> str:
    """Returns the SHA-256, as hex, of the bytes behind base64. For broken base64 it is that of the text."""
    try:
        content = base64.b64decode(encoded)
    except binascii.Error:
        content = encoded.encode()
    return hashlib.sha256(content).hexdigest()

"""The description in a picture's own metadata: XMP's `dc:description`, which photo managers show and search.

Exiv2 rewrites the metadata of JPEG, PNG, WebP, TIFF and JPEG 2000 files. What encodes the pixels is copied unchanged.
"""

import contextlib
import re
from collections.abc import Generator
from typing import Any

from ..core.extras import require

_KEY = "Xmp.dc.description"
_DEFAULT = 'lang="x-default"'  # XMP has a text for each language, and this one for all others

# Characters outside of XML 1.0.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def read_description(content: bytes) -> str | None:
    """Returns the description of a picture, or None if it has none.

    Args:
        content: The picture's encoded bytes.

    Raises:
        ValueError: It is no picture, or in a format whose metadata cannot be written.
        MissingPackageError: The package pyexiv2 is not installed.
    """
    with _opened(content) as picture:
        texts = _texts(picture)
    return texts.get(_DEFAULT, next(iter(texts.values()), None))


def with_description(content: bytes, text: str) -> bytes:
    """Returns a picture with another description. Descriptions in single languages stay.

    Args:
        content: The picture's encoded bytes.
        text: The description. Control characters, which XML has no place for, become spaces.

    Raises:
        ValueError, MissingPackageError: See `read_description`.
    """
    with _opened(content) as picture:
        picture.modify_xmp({_KEY: {**_texts(picture), _DEFAULT: _NOT_XML.sub(" ", text)}})
        return picture.get_bytes()


def _texts(picture: Any) -> dict[str, str]:
    found = picture.read_xmp().get(_KEY, {})
    return found if isinstance(found, dict) else {_DEFAULT: str(found)}


@contextlib.contextmanager
def _opened(content: bytes) -> Generator[Any]:
    exiv2: Any = require("pyexiv2", "Metadata in pictures")
    exiv2.set_log_level(4)  # its warnings would stand between ours
    try:
        picture = exiv2.ImageData(content)
    except RuntimeError as error:
        raise ValueError(f"its metadata cannot be read ({error})") from error
    try:
        if picture.get_access_mode()["xmp"] != "read+write":
            raise ValueError(f"captions are not written into files of the type {picture.get_mime_type()}")
        yield picture
    except RuntimeError as error:
        raise ValueError(f"its metadata cannot be written ({error})") from error
    finally:
        picture.close()

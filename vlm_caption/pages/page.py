"""Renders the templates in `templates/` to files."""

import base64
import functools
import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from ..core.files import write_text

# Twice the size at which most pages show pictures, for high-density screens.
THUMBNAIL_SIZE = 720


@dataclass(frozen=True)
class Thumbnail:
    """A small copy of a picture for an `img` element.

    Attributes:
        src: The picture as a JPEG data URL.
        width: The width in pixels.
        height: The height in pixels.
    """

    src: str
    width: int
    height: int


def make_thumbnail(image: Image.Image, size: int = THUMBNAIL_SIZE) -> Thumbnail:
    """Returns a copy of a picture that fits into a square. Small pictures keep their size.

    Args:
        image: An RGB picture.
        size: The side of the square in pixels.
    """
    image = image.copy()
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85, optimize=True)
    data = base64.b64encode(encoded.getvalue()).decode()
    return Thumbnail(f"data:image/jpeg;base64,{data}", image.width, image.height)


def write_page(path: str | os.PathLike, template: str, **values: Any) -> None:
    """Renders a template to a file, and replaces the file that was there.

    Args:
        path: The page.
        template: The name of a template.
        **values: The values of the template. Every text in them is escaped.

    Raises:
        OSError: The page cannot be written.
    """
    page = _environment().get_template(template).render(values)
    write_text(Path(path), page, errors="replace")  # a file name may contain bytes that are not valid text


@functools.cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("vlm_caption.pages"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )

"""A page of pictures with their captions."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..images.opening import ImageSource, describe, open_image
from .page import THUMBNAIL_SIZE, make_thumbnail, write_page

# Twice the size at which pictures of a sheet are shown.
_SHEET_THUMBNAIL_SIZE = 480


def write_gallery(
    path: str | os.PathLike,
    entries: Iterable[tuple[ImageSource, str]],
    title: str,
    note: str = "",
    *,
    is_sheet: bool = False,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Writes an HTML page that shows each picture next to its caption.

    The page contains small copies of the pictures. An existing file is replaced once the page is complete.

    Args:
        path: The page.
        entries: The pictures, in any form that `open_image` takes, each with its caption.
        title: The title and heading of the page. Titles, notes and captions are plain text.
        note: A paragraph below the heading.
        is_sheet: Whether to show many small pictures side by side, where the screen is wide enough.
        max_pixels: The largest picture to open; see `open_image`.
        max_bytes: The largest file to open; see `open_image`.

    Raises:
        ImageError: A picture cannot be opened.
        OSError: The page cannot be written.
    """
    size = _SHEET_THUMBNAIL_SIZE if is_sheet else THUMBNAIL_SIZE
    figures = [
        {
            "picture": make_thumbnail(open_image(source, max_pixels, max_bytes), size),
            "caption": caption,
            "file": file_name(source),
        }
        for source, caption in entries
    ]
    write_page(path, "gallery.html.jinja", title=title, note=note, is_sheet=is_sheet, figures=figures)


def file_name(source: ImageSource) -> str | None:
    """Returns the name of a picture's file; None for a picture without one."""
    name = describe(source)
    return None if name.startswith("<") else Path(name).name  # "<120 bytes>" is a description, not a name

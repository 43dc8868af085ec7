"""A page of pictures with the captions of several captioners."""

import os
from collections.abc import Mapping, Sequence

from ..images.opening import ImageSource, open_image
from .gallery import file_name
from .page import make_thumbnail, write_page


def write_comparison(
    path: str | os.PathLike,
    pictures: Sequence[ImageSource],
    captions: Mapping[str, Sequence[str]],
    references: Sequence[Sequence[str]],
    title: str,
    note: str = "",
) -> None:
    """Writes an HTML page that shows each picture with a caption of each captioner, and with its references.

    Args:
        path: The page.
        pictures: The pictures, in any form that `open_image` takes.
        captions: By the name of a captioner: its caption of each picture.
        references: The captions that people wrote of each picture.
        title: The title and heading of the page. All texts are plain text.
        note: A paragraph below the heading.

    Raises:
        ImageError: A picture cannot be opened.
        OSError: The page cannot be written.
        ValueError: There are not as many captions or references as pictures.
    """
    figures = [
        {
            "picture": make_thumbnail(open_image(picture)),
            "file": file_name(picture),
            "lines": list(zip(captions, own, strict=True)),
            "references": texts,
        }
        for picture, texts, *own in zip(pictures, references, *captions.values(), strict=True)
    ]
    write_page(path, "comparison.html.jinja", title=title, note=note, figures=figures)

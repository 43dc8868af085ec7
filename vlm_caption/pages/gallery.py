"""A web page of pictures beside their captions, in one file."""

import base64
import html
import io
import os
from collections.abc import Iterable
from pathlib import Path

from PIL import Image

from ..core.files import write_text
from ..images.opening import MAX_BYTES, MAX_PIXELS, ImageSource, describe, open_image

# The longer side in pixels: twice as wide as a picture is shown, for sharp screens.
_THUMBNAIL_SIZE = 720
_SHEET_THUMBNAIL_SIZE = 480

STYLE = """
:root { color-scheme: light dark; --page: #f6f5f2; --card: #ffffff; --line: #e2dfd8; --text: #1f1e1b; --dim: #6b6860; }
@media (prefers-color-scheme: dark) {
  :root { --page: #161614; --card: #20201d; --line: #34332f; --text: #edebe4; --dim: #a3a097; }
}
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 68rem; padding: 2.5rem 1.25rem 4rem; background: var(--page); color: var(--text);
  font: 1rem/1.5 system-ui, sans-serif; }
header { margin-bottom: 2rem; }
h1 { margin: 0 0 .5rem; font-size: 1.75rem; line-height: 1.2; letter-spacing: -.01em; }
header p { margin: 0; max-width: 44rem; color: var(--dim); }
figure { display: grid; grid-template-columns: 22.5rem 1fr; margin: 0 0 1.25rem; overflow: hidden;
  background: var(--card); border: 1px solid var(--line); border-radius: .75rem; }
img { display: block; width: 100%; height: auto; max-height: 26rem; object-fit: contain; background: var(--line); }
figcaption { align-self: center; padding: 1.25rem 1.75rem; min-width: 0; overflow-wrap: anywhere; }
.caption { margin: 0; font-size: 1.3rem; line-height: 1.4; }
.sheet { display: grid; grid-template-columns: repeat(auto-fill, minmax(15rem, 1fr)); gap: 1.25rem; }
.sheet figure { grid-template-columns: 1fr; align-content: start; margin: 0; }
.sheet img { aspect-ratio: 4 / 3; max-height: none; }
.sheet figcaption { align-self: start; padding: 1rem 1.25rem 1.25rem; }
.sheet .caption { font-size: 1.05rem; }
.file { margin: .6rem 0 0; font: .85rem/1.4 ui-monospace, monospace; color: var(--dim); }
@media (max-width: 44rem) {
  body { padding: 1.5rem 1rem 3rem; }
  figure { grid-template-columns: 1fr; }
  figcaption { padding: 1rem 1.25rem 1.25rem; }
  .caption { font-size: 1.15rem; }
}
""".strip()


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
    """Write an HTML page that shows each picture beside its caption.

    The page needs no other file and no network: it holds small copies of the pictures. An existing file is replaced
    once the page is complete.

    Args:
        path: Where to write the page.
        entries: The pictures, as `open_image` takes them, each with its caption.
        title: The page's title and heading.
        note: A paragraph below the heading. Titles, notes and captions are plain text.
        is_sheet: Many small pictures, side by side where the screen is wide enough.
        max_pixels, max_bytes: The limits of `open_image`.

    Raises:
        ImageError: A picture cannot be opened.
        OSError: The page cannot be written.
    """
    size = _SHEET_THUMBNAIL_SIZE if is_sheet else _THUMBNAIL_SIZE
    figures = "\n".join(
        _figure(open_image(picture, max_pixels, max_bytes), describe(picture), caption, size)
        for picture, caption in entries
    )
    introduction = f"\n<p>{html.escape(note)}</p>" if note else ""
    body = f"""<header>
<h1>{html.escape(title)}</h1>{introduction}
</header>
<main{' class="sheet"' if is_sheet else ""}>
{figures}
</main>"""
    write_page(path, title, STYLE, body)


def write_page(path: str | os.PathLike, title: str, style: str, body: str) -> None:
    """Write an HTML page that needs no other file.

    Args:
        path: Where to write it; an existing file is replaced.
        title: Plain text.
        style: CSS.
        body: HTML.

    Raises:
        OSError: The page cannot be written.
    """
    page = f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{html.escape(title)}</title>
<style>
{style}
</style>
</head>
<body>
{body}
</body>
</html>
"""
    write_text(Path(path), page, errors="replace")  # a file name may hold bytes that are no text


def picture_tag(image: Image.Image, alt: str, size: int) -> str:
    """An HTML `img` that holds a small copy of a picture, which is scaled down in place.

    Args:
        image: RGB.
        alt: What it shows, in plain text.
        size: The longer side of the copy, at most, in pixels.
    """
    image.thumbnail((size, size), Image.Resampling.LANCZOS)
    encoded = io.BytesIO()
    image.save(encoded, "JPEG", quality=85, optimize=True)
    data = base64.b64encode(encoded.getvalue()).decode()
    return (
        f'<img src="data:image/jpeg;base64,{data}" width="{image.width}" height="{image.height}" '
        f'alt="{html.escape(alt)}">'
    )


def _figure(image: Image.Image, name: str, caption: str, size: int) -> str:
    # What has no name is described in brackets.
    file = "" if name.startswith("<") else f'\n<p class="file">{html.escape(Path(name).name)}</p>'
    return f"""<figure>
{picture_tag(image, caption, size)}
<figcaption><p class="caption">{html.escape(caption)}</p>{file}</figcaption>
</figure>"""

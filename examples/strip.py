"""Captions the photos in this folder with the shipped checkpoint: `python examples/strip.py`, or `make examples`.

Writes the table of captions in `examples/README.md`, and the picture at the top of the repository's `README.md`. A
person judges each caption, in the last column of the table. A judgement stays while its caption does.
"""

import io
import json
import math
import re
from pathlib import Path
from typing import NamedTuple

from PIL import Image, ImageDraw, ImageFont

from vlm_caption import open_image
from vlm_caption.core.files import write_bytes, write_text

FOLDER = Path(__file__).resolve().parent
PAGE = FOLDER / "README.md"
PICTURE = FOLDER.parent / "docs" / "examples.jpg"

NOT_JUDGED = "not judged yet"
_HEADER = "| Photo | Caption | Judgement |\n|---|---|---|\n"
# The other table of the page has more cells in a row.
_ROW = re.compile(r"^\| `(\w+\.jpg)` \| ([^|\n]*) \| ([^|\n]*) \|$", re.MULTILINE)

# In pixels, about twice those of GitHub's column, for high-density screens.
_WIDTH, _GAP, _FONT_SIZE, _LINE = 1720, 20, 26, 34
_COLUMNS = 4
_BACKGROUND, _RIGHT, _WRONG = "white", "#1f2328", "#b3261e"


class Row(NamedTuple):
    """A row of the table: a photo's name, what the checkpoint says, and whether that is right.

    The judgement is "right", "wrong: " with what is wrong, or `NOT_JUDGED`.
    """

    photo: str
    caption: str
    judgement: str


def read_table(page: str) -> list[Row]:
    """Returns the rows of the table of captions in `examples/README.md`."""
    return [Row(*found) for found in _ROW.findall(page.partition(_HEADER)[2])]


def replace_table(page: str, captions: dict[str, str]) -> str:
    """Returns the page with other captions in its table.

    Args:
        page: `examples/README.md`.
        captions: The caption of each photo, by name.
    """
    judgements = {(row.photo, row.caption): row.judgement for row in read_table(page)}
    rows = [Row(photo, text, judgements.get((photo, text), NOT_JUDGED)) for photo, text in captions.items()]
    before, _header, after = page.partition(_HEADER)
    after = _ROW.sub("", after).lstrip("\n")
    return (
        before
        + _HEADER
        + "".join(f"| `{row.photo}` | {row.caption} | {row.judgement} |\n" for row in rows)
        + "\n"
        + after
    )


def draw(rows: list[Row]) -> Image.Image:
    """Returns a picture of the photos, whole and with equal heights in a line, each above its caption.

    A caption that is not right is red.
    """
    font = ImageFont.load_default(_FONT_SIZE)
    columns = math.ceil(len(rows) / math.ceil(len(rows) / _COLUMNS))
    bands = [_draw_band(rows[start : start + columns], font) for start in range(0, len(rows), columns)]
    picture = Image.new("RGB", (_WIDTH, sum(band.height for band in bands)), _BACKGROUND)
    y = 0
    for band in bands:
        picture.paste(band, (0, y))
        y += band.height
    return picture


def write_picture(path: Path, rows: list[Row]) -> None:
    """Draws the photos to a JPEG file, whose comment holds the rows as JSON."""
    encoded = io.BytesIO()
    draw(rows).save(encoded, "JPEG", quality=70, optimize=True, comment=json.dumps(rows))
    write_bytes(path, encoded.getvalue())


def _draw_band(rows: list[Row], font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> Image.Image:
    photos = [open_image(FOLDER / row.photo) for row in rows]
    room = _WIDTH - _GAP * (len(photos) - 1)
    height = int(room / sum(photo.width / photo.height for photo in photos))
    widths = [int(height * photo.width / photo.height) for photo in photos]
    texts = [_wrap(row.caption, width, font) for row, width in zip(rows, widths, strict=True)]
    lines = max(len(text) for text in texts)
    band = Image.new("RGB", (_WIDTH, height + _GAP // 2 + lines * _LINE + _GAP), _BACKGROUND)
    drawing = ImageDraw.Draw(band)
    x = 0
    for row, photo, width, text in zip(rows, photos, widths, texts, strict=True):
        band.paste(photo.resize((width, height), Image.Resampling.LANCZOS), (x, 0))
        color = _RIGHT if row.judgement == "right" else _WRONG
        for number, line in enumerate(text):
            drawing.text((x, height + _GAP // 2 + number * _LINE), line, fill=color, font=font)
        x += width + _GAP
    return band


def _wrap(text: str, width: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def main() -> None:
    from vlm_caption import Captioner  # imports torch

    captions = Captioner.from_pretrained().caption(sorted(FOLDER.glob("*.jpg")))
    page = replace_table(PAGE.read_text(), {Path(caption.image).name: caption.text for caption in captions})
    write_text(PAGE, page)
    rows = read_table(page)
    write_picture(PICTURE, rows)
    for row in rows:
        print(f"{row.photo}: {row.caption} ({row.judgement})")


if __name__ == "__main__":
    main()

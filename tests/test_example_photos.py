"""The photos in examples/: their captions in two files, and their copies in the wheel."""

import importlib.util
import json
import tomllib
from pathlib import Path

import pytest
from fetching import fetch
from PIL import Image

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTOS = sorted(path.name for path in (REPOSITORY / "examples").glob("*.jpg"))


@pytest.fixture(scope="module")
def strip():
    spec = importlib.util.spec_from_file_location("examples_strip", REPOSITORY / "examples" / "strip.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def rows(strip):
    return strip.read_table(strip.PAGE.read_text())


def test_every_photo_has_a_caption_that_somebody_judged(rows):
    assert [row.photo for row in rows] == PHOTOS
    for row in rows:
        assert row.judgement == "right" or row.judgement.startswith("wrong: "), f"{row.photo}: judge its caption"


def test_the_picture_shows_the_captions_of_the_page(strip, rows):
    with Image.open(strip.PICTURE) as picture:
        shown = [strip.Row(*row) for row in json.loads(picture.info["comment"])]
        assert picture.size == strip.draw(rows).size
    assert shown == rows, "write the picture anew: make examples"
    assert strip.PICTURE.stat().st_size < 250_000


@pytest.mark.index
def test_the_captions_are_what_the_shipped_checkpoint_says(rows):
    from vlm_caption import Captioner  # imports torch

    captioner = fetch(Captioner.from_pretrained)
    captions = captioner.caption([REPOSITORY / "examples" / photo for photo in PHOTOS])
    assert [caption.text for caption in captions] == [row.caption for row in rows], "write them anew: make examples"


def test_a_judgement_stays_as_long_as_its_caption(strip):
    page = f"Before\n\n{strip._HEADER}| `a.jpg` | A dog. | right |\n| `b.jpg` | A cat. | wrong: a fox |\n\nAfter\n"
    assert strip.replace_table(page, {"a.jpg": "A dog.", "b.jpg": "A cat."}) == page
    assert strip.read_table(strip.replace_table(page, {"a.jpg": "A pig.", "b.jpg": "A cat.", "c.jpg": "A hen."})) == [
        ("a.jpg", "A pig.", strip.NOT_JUDGED),
        ("b.jpg", "A cat.", "wrong: a fox"),
        ("c.jpg", "A hen.", strip.NOT_JUDGED),
    ]


def test_the_picture_keeps_every_photo_and_every_word(strip):
    short = [strip.Row(photo, "A dog.", "right") for photo in PHOTOS]
    long = [row._replace(caption="A dog. " * 40) for row in short]
    assert strip.draw(short).height < strip.draw(long).height
    assert strip.draw(short).tobytes() == strip.draw(short).tobytes()
    assert (
        strip.draw(short).tobytes() != strip.draw([row._replace(judgement="wrong: a cat") for row in short]).tobytes()
    )


def test_an_installed_wheel_has_every_photo_and_the_licence():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
    copies = settings["tool"]["hatch"]["build"]["targets"]["wheel"]["force-include"]
    assert copies["LICENSE"] == "vlm_caption/shipped/LICENSE"
    for photo in PHOTOS:
        assert copies[f"examples/{photo}"] == f"vlm_caption/shipped/examples/{photo}"

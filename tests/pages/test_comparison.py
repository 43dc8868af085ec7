"""The page of captions side by side."""

import pytest
from html_page import HOSTILE, Page
from PIL import Image

from vlm_caption.pages.comparison import write_comparison

PICTURES = [Image.new("RGB", (900, 600), "red"), Image.new("RGB", (20, 10), "blue")]


def test_each_picture_has_every_captioners_caption_and_its_references(tmp_path):
    captions = {"old": ["a red wall", "a wall"], "new": ["red", "blue"]}
    write_comparison(
        tmp_path / "page.html", PICTURES, captions, [["all red"], ["all blue", "water"]], "Title", "A note."
    )
    page = Page((tmp_path / "page.html").read_text())
    texts = ["old", "a red wall", "new", "red", "all red", "old", "a wall", "new", "blue", "all blue", "water"]
    places = [page.text.index(text) for text in ("Title", "A note.", "a red wall", "all red", "a wall", "all blue")]
    assert places == sorted(places)
    assert all(text in page.text for text in texts)
    assert len(page.images) == 2


def test_everything_written_by_others_is_escaped(tmp_path):
    write_comparison(tmp_path / "page.html", PICTURES[:1], {HOSTILE: [HOSTILE]}, [[HOSTILE]], HOSTILE, HOSTILE)
    page = Page((tmp_path / "page.html").read_text())
    assert "script" not in page.tags
    assert page.images[0]["alt"] == HOSTILE


def test_a_caption_too_few_is_refused(tmp_path):
    with pytest.raises(ValueError, match="zip"):
        write_comparison(tmp_path / "page.html", PICTURES, {"old": ["one"]}, [["a"], ["b"]], "Title")
    assert not (tmp_path / "page.html").exists()

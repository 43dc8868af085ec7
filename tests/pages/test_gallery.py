import base64
import io
import os
import re
import stat
from pathlib import Path

import pytest
from browser import find_chromium, look_at
from html_page import HOSTILE, Page
from PIL import Image

from vlm_caption.core.errors import ImageError
from vlm_caption.pages.gallery import write_gallery


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "a <b> & 'c'.png"
    Image.new("RGB", (1600, 800), "red").save(path)
    return path


def test_everything_written_by_others_is_escaped(tmp_path, photo):
    write_gallery(tmp_path / "page.html", [(photo, HOSTILE)], f"Title {HOSTILE}", f"Note {HOSTILE}")
    page = Page((tmp_path / "page.html").read_text())
    assert "script" not in page.tags
    assert "b" not in page.tags
    for text in (f"Title {HOSTILE}", f"Note {HOSTILE}", photo.name):
        assert text in page.text
    assert page.images[0]["alt"] == HOSTILE


def test_a_file_name_that_is_not_valid_text_is_shown_with_a_replacement(tmp_path, photo):
    odd = Path(os.fsdecode(bytes(tmp_path) + b"/caf\xe9.png"))
    photo.rename(odd)
    write_gallery(tmp_path / "page.html", [(odd, "red")], "Title")
    assert '<p class="file">caf?.png</p>' in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_pictures_are_embedded_small_and_in_order(tmp_path, photo):
    write_gallery(tmp_path / "page.html", [(photo, "red"), (Image.new("RGB", (20, 10), "blue"), "blue")], "Title")
    text = (tmp_path / "page.html").read_text()
    assert not re.search(r"https?://|url\(|<link|<script", text)
    images = Page(text).images
    assert [image["alt"] for image in images] == ["red", "blue"]
    sizes = []
    for image in images:
        kind, data = image["src"].split(",")
        assert kind == "data:image/jpeg;base64"
        with Image.open(io.BytesIO(base64.b64decode(data))) as opened:
            sizes.append(opened.size)
        assert (int(image["width"]), int(image["height"])) == sizes[-1]
    assert sizes == [(720, 360), (20, 10)]  # scaled down, never up


def test_a_sheet_is_of_smaller_pictures_side_by_side(tmp_path, photo):
    file = io.BytesIO(photo.read_bytes())
    file.name = "shards/0.tar, 1.png"
    write_gallery(tmp_path / "page.html", [(photo, "red"), (file, "too")], "Title", is_sheet=True)
    text = (tmp_path / "page.html").read_text()
    assert '<main class="sheet">' in text
    page = Page(text)
    assert [image["width"] for image in page.images] == ["480", "480"]
    assert "0.tar, 1.png" in page.text


@pytest.mark.browser
@pytest.mark.parametrize("is_sheet", [False, True])
def test_fits_a_phone(tmp_path, photo, is_sheet):
    find_chromium()
    write_gallery(tmp_path / "page.html", [(photo, HOSTILE), (photo, "a" * 200)], "b" * 200, is_sheet=is_sheet)
    found = look_at(tmp_path / "page.html", 390, tmp_path)
    assert (found["scroll_width"], found["beyond_edge"], found["broken_images"]) == (390, [], 0)
    assert found["smallest_text"] >= 12


def test_a_bad_picture_leaves_the_old_page_and_no_rubbish(tmp_path, photo):
    page = tmp_path / "page.html"
    page.write_text("old")
    with pytest.raises(ImageError):
        write_gallery(page, [(photo, "good"), (tmp_path / "missing.jpg", "bad")], "Title")
    assert page.read_text() == "old"
    assert sorted(tmp_path.iterdir()) == sorted([page, photo])


def test_a_page_is_replaced_whole_and_readable_by_all_who_may(tmp_path):
    page, other = tmp_path / "page.html", tmp_path / "other.txt"
    page.write_text("old")
    other.write_text("")
    write_gallery(page, [], "New")
    assert "<h1>New</h1>" in page.read_text()
    assert stat.S_IMODE(page.stat().st_mode) == stat.S_IMODE(other.stat().st_mode)
    assert sorted(tmp_path.iterdir()) == sorted([page, other])


def test_a_page_that_cannot_be_written_is_an_os_error(tmp_path):
    with pytest.raises(OSError, match="No such file"):
        write_gallery(tmp_path / "nowhere" / "page.html", [], "Title")

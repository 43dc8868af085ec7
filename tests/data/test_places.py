"""Where pictures are: the way into a dataset's column and back, and reading."""

import base64
import io
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm_caption.core.errors import ImageError, TruncatedImageError
from vlm_caption.data import Place, open_place
from vlm_caption.images.opening import open_image

text = st.text(st.characters(exclude_categories=["Cs"]) | st.sampled_from("#@+%;/0123456789"))
sizes = st.none() | st.integers(0, sys.maxsize)


@given(text.filter(bool), text, st.integers(0, sys.maxsize), sizes, st.booleans())
def test_a_place_comes_back_from_its_text(path, name, offset, size, is_base64):
    place = Place(path, name, offset, size, is_base64)
    if place.is_whole_file:  # has no name of its own
        place = Place(path)
    assert Place.parse(str(place)) == place


@given(text.filter(bool))
def test_a_file_is_its_path_unless_that_looks_like_a_stretch(path):
    assert str(Place(path)) == path or Place.parse(path) != Place(path)


def test_a_stretch_is_readable():
    assert str(Place("a/0.tar", "x.jpg", 512, 99)) == "a/0.tar#x.jpg@512+99"
    assert Place("a/0.tar", "x.jpg", 512, 99).described == "a/0.tar, x.jpg"
    assert Place("a/0.tar", "x.jpg", 512, 99).short_name == "0.tar, x.jpg"
    assert Place("a/b.jpg").described == "a/b.jpg"


@pytest.fixture
def picture():
    file = io.BytesIO()
    Image.new("RGB", (3, 2), "red").save(file, "PNG")
    return file.getvalue()


def test_a_stretch_is_opened_and_named_in_errors(tmp_path, picture):
    file = tmp_path / "all.bin"
    file.write_bytes(b"before" + picture + base64.b64encode(picture) + b"behind")
    plain = Place(str(file), "row 1", 6, len(picture))
    encoded = Place(str(file), "row 2", 6 + len(picture), len(base64.b64encode(picture)), is_base64=True)
    for place in (plain, encoded):
        assert place.read() == picture
        assert open_image(open_place(str(place))).getpixel((0, 0)) == (255, 0, 0)
    cut = Place(str(file), "row 1", 6, len(picture) // 2)
    with pytest.raises(TruncatedImageError, match=r"all\.bin, row 1: "):
        open_image(open_place(str(cut)))
    broken = Place(str(file), "row 3", encoded.offset, encoded.size - 3, is_base64=True)
    with pytest.raises(ImageError, match=r"all\.bin, row 3: this is not base64"):
        open_place(str(broken))


def test_a_file_that_is_gone_or_has_become_shorter_is_named(tmp_path):
    (tmp_path / "a.tar").write_bytes(b"short")
    with pytest.raises(ImageError, match=r"a\.tar, x\.jpg: the file has become shorter"):
        open_place(str(Place(str(tmp_path / "a.tar"), "x.jpg", 3, 100)))
    with pytest.raises(ImageError, match=r"b\.tar, x\.jpg: the file cannot be read \(No such file"):
        open_place(str(Place(str(tmp_path / "b.tar"), "x.jpg", 3, 100)))


def test_a_file_of_its_own_is_opened_by_its_path():
    assert open_place("photos/a.jpg") == "photos/a.jpg"

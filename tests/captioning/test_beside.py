"""Captions in text files beside pictures, and in the pictures' own metadata."""

import os
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image
from tiny_models import picture

from vlm_caption.captioning.beside import Descriptions, Sidecars, Wording
from vlm_caption.captioning.captioner import Caption
from vlm_caption.core.errors import DataError
from vlm_caption.images.description import read_description

needs_exiv2 = pytest.mark.skipif(find_spec("pyexiv2") is None, reason="needs pyexiv2, of the extra xmp")


@pytest.fixture
def photo(tmp_path):
    picture(1).save(tmp_path / "a.jpg")
    return tmp_path / "a.jpg"


def caption(path: Path, text: str) -> Caption:
    return Caption(str(path), text, -1.0)


@pytest.mark.parametrize(
    ("wording", "before", "expected"),
    [
        (Wording(), None, "A dog.\nA cat."),
        (Wording("my ", "!"), "old", "my A dog.!\nmy A cat.!"),
        (Wording(append=True), "old\n", "old\nA dog.\nA cat."),
        (Wording(append=True), "", "A dog.\nA cat."),
    ],
)
def test_captions_are_lines(wording, before, expected):
    assert wording.add(before, ["A dog.", "A cat."]) == expected


def test_a_text_file_that_cannot_be_read_is_kept(photo):
    text = photo.with_suffix(".txt")
    text.mkdir()
    assert Sidecars().has(str(photo))
    with pytest.raises(DataError, match=r"a\.txt: the caption cannot be written"):
        Sidecars(Wording(overwrite=True)).add([caption(photo, "A dog.")])


@needs_exiv2
class TestDescriptions:
    def test_are_kept_appended_or_replaced(self, photo):
        for wording, expected in (
            (Wording(), "A dog."),
            (Wording(append=True), "A dog.\nA dog."),
            (Wording("my ", overwrite=True), "my A dog."),
        ):
            writer = Descriptions(wording)
            assert not writer.has(str(photo))
            assert writer.add([caption(photo, "A dog.")]) == []
            assert read_description(photo.read_bytes()) == expected
        assert Descriptions().has(str(photo))

    def test_are_written_whole_with_the_permissions_of_the_file_and_through_links(self, photo):
        photo.chmod(0o640)
        link = photo.with_name("link.jpg")
        link.symlink_to(photo)
        left = photo.with_name(".a.jpg.123.partial")
        left.touch()
        writer = Descriptions()
        writer.remove_leftovers([str(link)])
        writer.add([caption(link, "A dog.")])
        assert link.is_symlink()
        assert photo.stat().st_mode & 0o777 == 0o640
        assert read_description(photo.read_bytes()) == "A dog."
        assert sorted(path.name for path in photo.parent.iterdir()) == ["a.jpg", "link.jpg"]

    def test_of_a_format_without_them_are_that_pictures_fault_alone(self, photo):
        other = photo.with_name("b.gif")
        picture(1).save(other)
        pipe = photo.with_name("pipe.jpg")
        os.mkfifo(pipe)
        errors = Descriptions().unusable([str(photo), str(other), str(pipe), "none.jpg"])
        assert list(errors) == [str(other), "none.jpg"]  # what opens the pipe refuses it
        assert errors[str(other)].reason == "captions are not written into files of the type image/gif"
        captions = [caption(other, "A dog."), caption(photo, "A cat.")]
        [error] = Descriptions().add(captions)
        assert error.source == str(other)
        assert read_description(photo.read_bytes()) == "A cat."
        with Image.open(photo) as image:
            image.load()

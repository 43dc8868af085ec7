"""The description in a picture's own metadata."""

import io

import numpy as np
import pytest
from PIL import Image
from tiny_models import picture

from vlm_caption.core.errors import MissingPackageError
from vlm_caption.images.description import read_description, with_description


def encoded(image_format: str, **options) -> bytes:
    file = io.BytesIO()
    picture(1, width=40).save(file, image_format, **options)
    return file.getvalue()


def pixels(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        return np.asarray(image)


class TestDescriptions:
    @pytest.fixture(autouse=True)
    def exiv2(self):
        pytest.importorskip("pyexiv2", reason="needs pyexiv2, of the extra xmp")

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "TIFF", "JPEG2000"])
    @pytest.mark.parametrize("text", ["A dog.", 'é "日本" <a&b>\nsecond 🙂', 'lang="de" no language'])
    def test_are_read_as_written_and_leave_the_pixels_alone(self, image_format, text):
        content = encoded(image_format)
        assert read_description(content) is None
        for words in ("before", text):
            written = with_description(content, words)
        assert read_description(written) == text
        assert np.array_equal(pixels(written), pixels(content))
        with Image.open(io.BytesIO(written)) as image:
            assert image.format == image_format

    def test_are_valid_xml(self):
        written = with_description(encoded("PNG"), "a\x0e\x00\udcff\uffffb")
        assert read_description(written) == "a    b"

    def test_leave_other_metadata_and_what_follows_the_picture(self):
        exif = Image.Exif()
        exif[0x010F] = "a camera"
        content = encoded("JPEG", exif=exif, comment=b"mine") + b"a film" * 9
        written = with_description(content, "A dog.")
        assert written.endswith(b"a film" * 9)
        with Image.open(io.BytesIO(written)) as image:
            assert (image.getexif()[0x010F], image.info["comment"].rstrip(b"\0")) == ("a camera", b"mine")

    @pytest.mark.parametrize("image_format", ["GIF", "BMP", "PPM"])
    def test_are_refused_where_a_format_has_none(self, image_format):
        with pytest.raises(ValueError, match=r"captions are not written into files of the type|cannot be read"):
            read_description(encoded(image_format))

    @pytest.mark.parametrize("content", [b"", b"no picture", b"\xff\xd8\xff"])
    def test_of_no_picture_are_an_error(self, content):
        with pytest.raises(ValueError, match="its metadata cannot be read"):
            with_description(content, "A dog.")


def test_the_extra_is_named_if_the_package_is_missing(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "pyexiv2", None)
    with pytest.raises(MissingPackageError, match=r"needs the package pyexiv2: pip install 'vlm-caption\[xmp\]'"):
        read_description(b"")

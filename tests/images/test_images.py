import base64
import io
import os
import pickle
import struct
import sys
import warnings

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, PngImagePlugin, features

from vlm_caption.core.errors import (
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
)
from vlm_caption.images.finding import find_images
from vlm_caption.images.opening import describe, open_image

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)


def encode(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixel(image: Image.Image, x: int, y: int) -> tuple[int, ...]:
    return tuple(np.asarray(image)[y, x].tolist())


def noise(width: int = 24, height: int = 16) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "picture.png"
    noise().save(path)
    return path


def test_every_kind_of_source_gives_the_same_picture(picture):
    expected = np.asarray(noise())
    with picture.open("rb") as file:
        sources = [str(picture), picture, picture.read_bytes(), file, noise(), expected]
        for source in sources:
            image = open_image(source)
            assert image.mode == "RGB"
            np.testing.assert_array_equal(np.asarray(image), expected)
        assert not file.closed


def test_a_file_that_gives_less_than_asked_for_is_read_to_its_end():
    class Sparing(io.BytesIO):
        def read(self, size=-1):
            return super().read(min(size, 10))

    assert open_image(Sparing(encode(noise()))).size == (24, 16)


def test_a_binary_file_is_read_from_its_start():
    buffer = io.BytesIO()
    noise().save(buffer, "PNG")
    assert open_image(buffer).size == (24, 16)


@pytest.mark.parametrize("image_format", ["PNG", "BMP", "TIFF", "PPM", "GIF", "WEBP", "JPEG", "JPEG2000", "AVIF"])
def test_every_format_opens(image_format):
    if image_format == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    image = open_image(encode(Image.new("RGB", (20, 10), RED), image_format))
    assert image.size == (20, 10)
    np.testing.assert_allclose(np.asarray(image), np.broadcast_to(RED, (10, 20, 3)), atol=3)


def test_heic_opens_where_its_plug_in_is_there(monkeypatch):
    pillow_heif = pytest.importorskip("pillow_heif", reason="needs pillow-heif")
    pillow_heif.register_heif_opener()
    content = encode(Image.new("RGB", (64, 48), RED), "HEIF", quality=95)
    monkeypatch.delitem(Image.OPEN, "HEIF")  # as in a process that has seen none before
    image = open_image(content)
    assert image.size == (64, 48)
    np.testing.assert_allclose(pixel(image, 9, 9), RED, atol=5)
    with pytest.raises(TruncatedImageError):
        open_image(content[: len(content) - 20])
    with pytest.raises(ImageTooLargeError, match="64 x 48"):
        open_image(content, max_pixels=3000)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied_once(orientation, image_format):
    upright = Image.new("RGB", (32, 16), BLUE)
    upright.paste(RED, (0, 0, 16, 8))  # the upper left quarter
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # orientation -> the inverse Transpose
    stored = upright.transpose(Image.Transpose(undo[orientation])) if orientation in undo else upright
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    options = {"quality": 100} if image_format in ("JPEG", "WEBP") else {}

    once = open_image(encode(stored, image_format, exif=exif, **options))
    for image in (once, open_image(once)):
        assert image.size == (32, 16)
        np.testing.assert_allclose(pixel(image, 4, 3), RED, atol=12)
        for x, y in [(28, 3), (4, 13), (28, 13)]:
            np.testing.assert_allclose(pixel(image, x, y), BLUE, atol=12)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_exif_does_not_keep_a_picture_from_opening():
    assert open_image(encode(noise(), "JPEG", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")).size == (24, 16)


def paletted(transparency) -> Image.Image:
    image = Image.new("P", (4, 4), 0)
    image.putpalette([*RED, *GREEN])
    image.putpixel((0, 0), 1)
    image.info["transparency"] = transparency
    return image


@pytest.mark.parametrize(
    ("image", "expected"),
    [
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), WHITE),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), RED),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), WHITE),
        (Image.new("PA", (4, 4), (0, 0)), WHITE),
        (paletted(0), WHITE),
        (paletted(b"\x00\xff"), WHITE),
        (paletted(1), RED),
    ],
    ids=["RGBA clear", "RGBA opaque", "RGBA half", "LA", "PA", "P index", "P bytes", "P other"],
)
def test_transparency_is_laid_on_white(image, expected):
    assert pixel(open_image(image), 2, 2) == expected
    if image.mode != "PA":  # PNG has no such mode
        assert pixel(open_image(encode(image)), 2, 2) == expected


def test_a_transparent_colour_of_an_opaque_mode_is_laid_on_white():
    assert pixel(open_image(encode(Image.new("RGB", (4, 4), RED), transparency=RED)), 0, 0) == WHITE
    assert pixel(open_image(encode(Image.new("L", (4, 4), 7), transparency=7)), 0, 0) == WHITE


def test_a_transparent_value_of_16_bits_is_laid_on_white():
    deep = Image.fromarray(np.array([[0, 30000, 65535, 117 * 257]], np.uint16))
    content = encode(deep, transparency=30000)
    assert np.asarray(open_image(content))[0, :, 0].tolist() == [0, 255, 255, 117]


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 100, (100,) * 3), ("1", 1, WHITE), ("1", 0, (0, 0, 0))])
def test_grey_and_bilevel_pictures(mode, value, expected):
    assert pixel(open_image(encode(Image.new(mode, (4, 4), value))), 0, 0) == expected


def test_cmyk_pictures():
    image = open_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    np.testing.assert_allclose(pixel(image, 8, 8), RED, atol=5)
    assert pixel(open_image(encode(Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "TIFF")), 2, 2) == RED


def test_cmyk_jpegs_are_inverted_with_and_without_the_mark_of_adobe():
    # As in browsers: programs that write CMYK follow Adobe, whether they say so or not.
    content = encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100)
    start = content.index(b"\xff\xee")
    assert content[start + 4 : start + 9] == b"Adobe"
    unmarked = content[:start] + content[start + 2 + int.from_bytes(content[start + 2 : start + 4]) :]
    for jpeg in (content, unmarked):
        np.testing.assert_allclose(pixel(open_image(jpeg), 8, 8), RED, atol=5)


def test_lab_pictures():
    grey = Image.new("LAB", (4, 4), (128, 128, 128))  # L* = 50.2: sRGB 119
    np.testing.assert_allclose(pixel(open_image(encode(grey, "TIFF")), 0, 0), (119, 119, 119), atol=2)


@pytest.mark.parametrize(("image_format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I"), ("PPM", "I")])
def test_16_bit_pictures_are_scaled_and_not_clipped(image_format, mode):
    image = Image.fromarray(np.array([[0, 257, 25700, 65535]], np.int32 if mode == "I" else np.uint16))
    assert image.mode == mode
    for source in (image, encode(image, image_format)):
        assert np.asarray(open_image(source))[0, :, 0].tolist() == [0, 1, 100, 255]


@pytest.mark.parametrize("bits", [8, 10, 12, 14, 16])
def test_fewer_bits_in_16_are_scaled_by_their_own_range(bits):
    top = 2**bits - 1
    values = np.array([[0, top // 5, top]], np.uint16)
    for source in (
        values,
        np.stack([values[0]] * 3, axis=-1)[None].repeat(6, axis=0),
        encode(Image.fromarray(values)),
    ):
        assert set(np.asarray(open_image(source))[..., 0].flat) == {0, 51, 255}


def test_a_dark_picture_is_not_stretched():
    assert np.asarray(open_image(np.array([[0, 2, 3]], np.uint16)))[0, :, 0].tolist() == [0, 2, 3]


def packed_12_bit_tiff(values: list[int]) -> bytes:
    """A TIFF of one row whose header says 12 bits."""
    bits = "".join(f"{value:012b}" for value in values)
    data = int(bits, 2).to_bytes(len(bits) // 8)
    tags = {256: len(values), 257: 1, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: 1, 279: len(data)}
    directory = b"".join(struct.pack("<HHIHH", tag, 3, 1, value, 0) for tag, value in tags.items())
    start = 8 + len(data)
    return b"II*\0" + struct.pack("<I", start) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


def test_a_range_that_the_file_names_counts():
    # All of them fit into 10 bits.
    assert np.asarray(open_image(packed_12_bit_tiff([0, 819, 512, 0])))[0, :, 0].tolist() == [0, 51, 32, 0]
    dark = Image.fromarray(np.array([[0, 257, 514]], np.int32))
    assert np.asarray(open_image(encode(dark, "PPM")))[0, :, 0].tolist() == [0, 1, 2]


def test_integers_beyond_16_bits_are_refused():
    for value in (-1, 65536):
        with pytest.raises(UnsupportedImageError, match="8 or 16 bits"):
            open_image(Image.fromarray(np.array([[0, value]], np.int32)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_of_either_range(dtype):
    grey = np.array([[0, 0.2, 1]], dtype)
    assert np.asarray(open_image(grey))[0, :, 0].tolist() == [0, 51, 255]
    assert np.asarray(open_image(grey * 255))[0, :, 0].tolist() == [0, 51, 255]
    colour = np.stack([np.tile(grey, (5, 1))] * 3, axis=-1)
    assert np.asarray(open_image(colour))[4, :, 2].tolist() == [0, 51, 255]


def test_floats_may_overshoot_their_range_by_rounding():
    assert np.asarray(open_image(np.array([[-1e-6, 0.2, 1.000001]])))[0, :, 0].tolist() == [0, 51, 255]
    assert np.asarray(open_image(np.array([[-1e-5, 51, 255.0001]])))[0, :, 0].tolist() == [0, 51, 255]


def test_float_pictures():
    image = Image.fromarray(np.array([[0, 0.2, 1]], np.float32))
    for source in (image, encode(image, "TIFF")):
        assert np.asarray(open_image(source))[0, :, 1].tolist() == [0, 51, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, -0.1, 1.2, 256])
def test_float_pixels_out_of_range_are_refused(value):
    with pytest.raises(UnsupportedImageError, match=r"0\.\.255"):
        open_image(np.array([[0.5, value]]))


@pytest.mark.parametrize("as_tensor", [False, True], ids=["array", "tensor"])
@pytest.mark.parametrize("channels_first", [False, True], ids=["HWC", "CHW"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_the_channels_may_stand_in_front_or_behind(channels, channels_first, as_tensor):
    array = np.full((5, 6, channels), 255, np.uint8)
    array[0, 0] = 0
    array[0, 1, 1:3] = 0
    if channels_first:
        array = np.moveaxis(array, 2, 0)
    image = open_image(torch.from_numpy(array) if as_tensor else array)
    assert image.size == (6, 5)
    assert pixel(image, 1, 1) == WHITE
    assert pixel(image, 0, 0) == (WHITE if channels == 4 else (0, 0, 0))  # transparent
    assert pixel(image, 1, 0) == (RED if channels > 1 else WHITE)


def test_an_array_of_height_and_width_is_grey():
    image = open_image(np.array([[0, 100]], np.uint8))
    assert (image.size, pixel(image, 1, 0)) == ((2, 1), (100, 100, 100))


@pytest.mark.parametrize("shape", [(3, 3, 3), (3, 4, 3), (1, 400, 3), (4, 9, 1)])
def test_a_shape_that_allows_two_pictures_is_refused(shape):
    for source in (np.zeros(shape, np.uint8), torch.zeros(shape)):
        with pytest.raises(UnsupportedImageError, match="first or the last axis"):
            open_image(source)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.float16, torch.bfloat16, torch.float64])
def test_tensors_of_every_dtype(dtype):
    values = torch.tensor([0, 51, 255])
    values = values * 257 if dtype == torch.uint16 else values / 255 if dtype.is_floating_point else values
    tensor = values.to(dtype).expand(3, 6, 3)
    with pytest.raises(UnsupportedImageError):
        open_image(tensor)
    tensor = tensor.repeat(1, 1, 2)  # channels x height x width, no view
    assert np.asarray(open_image(tensor))[5, :3, 1].tolist() == [0, 51, 255]


def test_a_tensor_of_a_graph():
    assert pixel(open_image(torch.ones(3, 8, 8, requires_grad=True)), 0, 0) == WHITE


def test_an_array_that_is_a_view_of_another():
    array = np.asarray(noise())
    np.testing.assert_array_equal(np.asarray(open_image(array[::-1, ::2])), array[::-1, ::2])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.float32),
        np.zeros((2, 20, 20), np.uint8),
        np.zeros((20, 20, 2), np.uint8),
        np.zeros(4, np.uint8),
        np.zeros((1, 4, 4, 3), np.uint8),
        np.zeros((4, 4), np.int64),
        np.zeros((4, 4), bool),
    ],
    ids=lambda array: f"{array.dtype}{array.shape}",
)
def test_arrays_that_are_no_picture_are_refused(array):
    with pytest.raises(UnsupportedImageError):
        open_image(array)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP"])
def test_the_first_frame_of_an_animation(image_format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if image_format == "WEBP" else {}
    content = encode(frames[0], image_format, save_all=True, append_images=frames[1:], duration=100, **options)
    assert pixel(open_image(content), 4, 4) == RED


def test_a_pillow_image_is_left_as_it_is():
    image = Image.new("RGB", (4, 4), RED)
    image.info["comment"] = "kept"
    opened = open_image(image)
    opened.putpixel((0, 0), BLUE)
    assert pixel(image, 0, 0) == RED
    assert image.info == {"comment": "kept"}


def test_the_pixel_limit_is_checked_before_decoding(picture):
    # Its header is all there is: decoding it would report the damage instead.
    header = picture.read_bytes()[:60]
    with pytest.raises(ImageTooLargeError, match="24 x 16"):
        open_image(header, max_pixels=24 * 16 - 1)
    with pytest.raises(TruncatedImageError):
        open_image(header, max_pixels=24 * 16)


def test_the_pixel_limit_holds_for_images_in_memory():
    for source in (noise(), np.asarray(noise())):
        with pytest.raises(ImageTooLargeError):
            open_image(source, max_pixels=24 * 16 - 1)
        assert open_image(source, max_pixels=24 * 16).size == (24, 16)


def test_the_pixel_limit_is_half_for_webp():
    assert open_image(encode(noise(), "WEBP"), max_pixels=2 * 24 * 16).size == (24, 16)
    with pytest.raises(ImageTooLargeError):
        open_image(encode(noise(), "WEBP"), max_pixels=2 * 24 * 16 - 1)


def test_a_jpeg_too_short_for_its_pixels_is_not_decoded():
    content = bytearray(encode(noise(), "JPEG"))
    start = content.index(b"\xff\xc0")
    content[start + 5 : start + 9] = struct.pack(">HH", 10_000, 10_000)
    with pytest.raises(TruncatedImageError, match="bytes for 10000 x 10000 pixels"):
        open_image(bytes(content))
    assert open_image(encode(Image.new("RGB", (4000, 4000)), "JPEG", progressive=True)).size == (4000, 4000)


def test_a_jpeg_of_endless_scans_is_refused():
    content = encode(noise(), "JPEG", progressive=True)
    last = content.rindex(b"\xff\xc4")  # the last scan with its table
    assert open_image(content[:-2] + content[last:-2] * 50 + content[-2:]).size == (24, 16)
    with pytest.raises(ImageTooLargeError, match="110 scans"):
        open_image(content[:-2] + content[last:-2] * 100 + content[-2:])


@pytest.mark.parametrize("what", ["icc_profile", "comment"])
def test_a_compressed_bomb_beside_the_pixels_is_refused(what):
    zeros = bytes(20 << 20)
    text = PngImagePlugin.PngInfo()
    if what == "comment":
        text.add_text("comment", zeros.decode(), zip=True)
    bomb = encode(noise(), icc_profile=zeros if what == "icc_profile" else None, pnginfo=text)
    assert len(bomb) < 30_000
    with pytest.raises(ImageTooLargeError, match="more than Pillow reads"):
        open_image(bomb)


def test_pillows_own_limit_does_not_interfere(picture, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_image(picture).size == (24, 16)
    assert Image.MAX_IMAGE_PIXELS == 10


@pytest.mark.parametrize("image_format", ["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"])
def test_a_file_cut_in_half_is_truncated(image_format):
    content = encode(noise(64, 64), image_format)
    with pytest.raises(TruncatedImageError, match="cut short or damaged"):
        open_image(content[: len(content) // 2])


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(["PNG", "JPEG", "GIF", "BMP", "TIFF", "WEBP", "PPM"]),
    st.integers(0, 10**6),
    st.integers(0, 255),
    st.booleans(),
)
@pytest.mark.filterwarnings("ignore")
def test_damage_gives_a_picture_or_an_image_error(image_format, place, value, cut):
    content = bytearray(encode(noise(8, 8), image_format))
    place %= len(content)
    content[place] = value
    try:
        image = open_image(bytes(content[:place] if cut else content), max_pixels=10**6)
    except ImageError:
        return
    assert image.mode == "RGB"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "empty"),
        (b"BM is how this text starts, and it is no bitmap", "text"),
        (b"P1 and P2 are names of formats", "text"),
        (b"a,b\n1,2\n", "text"),
        (b"\n<!DOCTYPE html><html></html>", "web page"),
        (bytes(range(200)), "not a picture"),
    ],
)
def test_files_that_are_no_pictures(tmp_path, content, words):
    path = tmp_path / "file.jpg"
    path.write_bytes(content)
    with pytest.raises(NotAnImageError, match=words) as caught:
        open_image(path)
    assert caught.value.source == str(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "pip install pillow-heif"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0mif1heic", "pip install pillow-heif"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif", "pip install --upgrade pillow"),
        (b"<?xml version='1.0'?><svg></svg>", "SVG"),
    ],
)
def test_formats_that_are_not_read_are_named(content, words, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as if it were not installed
    for plugin in ("HEIF", "AVIF"):
        monkeypatch.delitem(Image.OPEN, plugin, raising=False)
    with pytest.raises(UnsupportedImageError, match=words):
        open_image(content)


def test_a_folder_is_not_an_image(tmp_path):
    with pytest.raises(NotAnImageError, match="folder"):
        open_image(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(NotAnImageError, match="regular"):
        open_image(tmp_path / "pipe.png")


@pytest.mark.parametrize("name", ["missing.png", "picture.png/inside.png", "zero\0byte.png"])
def test_a_missing_file_is_not_found(picture, name):
    with pytest.raises(ImageNotFoundError):
        open_image(picture.parent / name)


def test_an_empty_path_is_not_found():
    with pytest.raises(ImageError, match="<empty path>"):
        open_image("")


def test_a_data_url_is_its_picture():
    content = encode(noise())
    for url in (
        "data:image/png;base64," + base64.b64encode(content).decode(),
        "DATA:," + "".join(f"%{byte:02x}" for byte in content),
    ):
        np.testing.assert_array_equal(np.asarray(open_image(url)), np.asarray(noise()))
        assert len(describe(url)) < 80


def test_data_urls_that_begin_alike_have_names_of_their_own():
    urls = [
        "data:image/bmp;base64," + base64.b64encode(encode(Image.new("RGB", (24, 16), colour), "BMP")).decode()
        for colour in ("red", "blue")
    ]
    assert urls[0][:60] == urls[1][:60]
    assert len(urls[0]) == len(urls[1])
    assert describe(urls[0]) != describe(urls[1])
    assert describe(urls[0]) == describe(str(urls[0]))


@pytest.mark.parametrize("url", ["data:image/png;base64", "data:image/png;base64,AAA", "data:,"])
def test_a_data_url_that_holds_no_picture(url):
    with pytest.raises(NotAnImageError):
        open_image(url)


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF"])
@pytest.mark.parametrize("size", [2, 200])
def test_base64_is_not_taken_for_a_path(image_format, size):
    text = base64.b64encode(encode(noise(size, size), image_format)).decode()
    with pytest.raises(UnsupportedImageError, match="base64") as caught:
        open_image(text)
    assert len(str(caught.value)) < 200


def test_the_limit_on_bytes_is_checked_before_reading(picture):
    class Endless(io.RawIOBase):
        def readable(self):
            return True

        def readinto(self, buffer):
            return len(buffer)

    size = picture.stat().st_size
    url = "data:;base64," + base64.b64encode(picture.read_bytes()).decode()
    for source in (picture, str(picture), picture.read_bytes(), io.BytesIO(picture.read_bytes()), url):
        assert open_image(source, max_bytes=size).size == (24, 16)
        with pytest.raises(ImageTooLargeError, match="limit"):
            open_image(source, max_bytes=size - 1)
    with pytest.raises(ImageTooLargeError, match="limit"):
        open_image(io.BufferedReader(Endless()), max_bytes=10**6)


def test_urls_are_given_through():
    urls = ["http://example.org/a.png", "HTTPS://example.org/a.png", "data:,x"]
    assert find_images([*urls, urls[0]]) == urls


def test_a_text_file_object_and_other_objects_are_refused():
    with pytest.raises(UnsupportedImageError, match="'rb'"):
        open_image(io.StringIO("text"))  # ty: ignore[invalid-argument-type]
    with pytest.raises(UnsupportedImageError, match="NumPy array"):
        open_image(7)  # ty: ignore[invalid-argument-type]


def test_errors_survive_the_way_out_of_a_worker_process():
    error = pickle.loads(pickle.dumps(TruncatedImageError("a.jpg", "cut short")))
    assert isinstance(error, TruncatedImageError)
    assert (error.source, error.reason, str(error)) == ("a.jpg", "cut short", "a.jpg: cut short")
    assert isinstance(error, ValueError)


@pytest.fixture
def tree(tmp_path):
    names = ["b.png", "a.JPG", "notes.txt", ".hidden.png", "sub/c.webp", ".cache/d.png"]
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    return tmp_path


def test_a_folder_is_walked_in_sorted_order_without_hidden_files(tree):
    assert find_images([tree]) == [tree / "a.JPG", tree / "b.png", tree / "sub/c.webp"]


def test_given_files_are_kept_in_order_and_once(tree):
    given_paths = [tree / "notes.txt", str(tree / ".hidden.png"), tree / "missing.png", tree / "b.png", tree]
    given_paths += [tree / "sub/../b.png"]
    assert find_images(given_paths) == [
        tree / "notes.txt",
        tree / ".hidden.png",
        tree / "missing.png",
        tree / "b.png",
        tree / "a.JPG",
        tree / "sub/c.webp",
    ]


def test_a_folder_without_pictures_is_reported(tree):
    (tree / "empty").mkdir()
    with pytest.raises(ImageNotFoundError, match="no pictures") as caught:
        find_images([tree, tree / "empty"])
    assert caught.value.source == str(tree / "empty")

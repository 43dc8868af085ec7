import io
import os
import pickle
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import ExifTags, Image, features

from vlm_caption.images import (
    ImageError,
    ImageNotFoundError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
    find_images,
    open_image,
)

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


@pytest.mark.parametrize(("mode", "value", "expected"), [("L", 100, (100,) * 3), ("1", 1, WHITE), ("1", 0, (0, 0, 0))])
def test_grey_and_bilevel_pictures(mode, value, expected):
    assert pixel(open_image(encode(Image.new(mode, (4, 4), value))), 0, 0) == expected


def test_cmyk_pictures():
    image = open_image(encode(Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", quality=100))
    np.testing.assert_allclose(pixel(image, 8, 8), RED, atol=5)


@pytest.mark.parametrize(("image_format", "mode"), [("PNG", "I;16"), ("TIFF", "I;16"), ("TIFF", "I"), ("PPM", "I")])
def test_16_bit_pictures_are_scaled_and_not_clipped(image_format, mode):
    image = Image.fromarray(np.array([[0, 257, 25700, 65535]], np.int32 if mode == "I" else np.uint16))
    assert image.mode == mode
    for source in (image, encode(image, image_format)):
        assert np.asarray(open_image(source))[0, :, 0].tolist() == [0, 1, 100, 255]


def test_integers_beyond_16_bits_are_refused():
    for value in (-1, 65536):
        with pytest.raises(UnsupportedImageError, match="8 or 16 bits"):
            open_image(Image.fromarray(np.array([[0, value]], np.int32)))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_float_arrays_of_either_range(dtype):
    grey = np.array([[0, 0.2, 1]], dtype)
    assert np.asarray(open_image(grey))[0, :, 0].tolist() == [0, 51, 255]
    assert np.asarray(open_image(grey * 255))[0, :, 0].tolist() == [0, 51, 255]
    assert np.asarray(open_image(np.stack([grey] * 3, axis=-1)))[0, :, 2].tolist() == [0, 51, 255]


def test_float_pictures():
    image = Image.fromarray(np.array([[0, 0.2, 1]], np.float32))
    for source in (image, encode(image, "TIFF")):
        assert np.asarray(open_image(source))[0, :, 1].tolist() == [0, 51, 255]


@pytest.mark.parametrize("value", [np.nan, np.inf, -0.1, 255.5])
def test_float_pixels_out_of_range_are_refused(value):
    with pytest.raises(UnsupportedImageError, match=r"0\.\.255"):
        open_image(np.array([[0.5, value]]))


@pytest.mark.parametrize("shape", [(3, 4), (3, 4, 1), (3, 4, 3), (3, 4, 4)])
def test_array_shapes(shape):
    array = np.full(shape, 255, np.uint8)
    array[0, 0] = 0
    image = open_image(array)
    assert image.size == (4, 3)
    assert pixel(image, 1, 1) == WHITE
    assert pixel(image, 0, 0) == (WHITE if shape[2:] == (4,) else (0, 0, 0))


def test_an_array_that_is_a_view_of_another():
    array = np.asarray(noise())
    np.testing.assert_array_equal(np.asarray(open_image(array[::-1, ::2])), array[::-1, ::2])


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 0), np.float32),
        np.zeros((3, 20, 20), np.uint8),
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
    [(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"), (b"<?xml version='1.0'?><svg></svg>", "SVG")],
)
def test_formats_that_are_not_read_are_named(content, words):
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


def test_urls_are_not_read_yet():
    for url in ("http://example.org/a.png", "HTTPS://example.org/a.png"):
        with pytest.raises(UnsupportedImageError, match="download"):
            open_image(url)
        with pytest.raises(UnsupportedImageError, match="download"):
            find_images([url])


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

"""Odd pictures on their way into the model: each is what captioning makes of it, or one sentence, never a guess.

Paths, bytes and arrays go to the processor as they are; the pixels must be those of `open_image`.
"""

import io
import zlib

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_models import picture, tiny_config, tiny_processor
from transformers.image_utils import load_image

from vlm_caption import CaptionerProcessor
from vlm_caption.core.errors import (
    ImageNotFoundError,
    ImageTooLargeError,
    NotAnImageError,
    TruncatedImageError,
    UnsupportedImageError,
)
from vlm_caption.images.opening import open_image
from vlm_caption.model import processing_captioner


@pytest.fixture(scope="module")
def processor() -> CaptionerProcessor:
    return tiny_processor(tiny_config())


def encode(image: Image.Image, image_format: str = "PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def pixels(processor: CaptionerProcessor, images, **options) -> torch.Tensor:
    return processor(images=images, return_tensors="pt", **options)["pixel_values"]


def expected(processor: CaptionerProcessor, *colour: int, size=(30, 20)) -> torch.Tensor:
    return processor.image_processor(Image.new("RGB", size, colour), return_tensors="pt")["pixel_values"]


def test_every_kind_of_source_gives_the_same_pixels(processor, tmp_path):
    image = picture()
    image.save(tmp_path / "picture.png")
    array = np.asarray(image)
    sources = [
        str(tmp_path / "picture.png"),
        tmp_path / "picture.png",
        encode(image),
        io.BytesIO(encode(image)),
        image,
        array,
        array / 255,
        torch.from_numpy(array.copy()),
        torch.from_numpy(array.copy()).permute(2, 0, 1) / 255,
    ]
    right = processor.image_processor(open_image(image), return_tensors="pt")["pixel_values"]
    for source in sources:
        torch.testing.assert_close(pixels(processor, source), right, rtol=0, atol=0)
    assert pixels(processor, sources).shape[0] == len(sources)
    rows = [[sources[0], sources[2]], [sources[5]]]
    found = pixels(processor, rows, text=["<image><image>", "<image>"], padding=True)
    torch.testing.assert_close(found, right.repeat(3, 1, 1, 1), rtol=0, atol=0)
    torch.testing.assert_close(pixels(processor, np.stack([array] * 2)), right.repeat(2, 1, 1, 1), rtol=0, atol=0)


def test_a_truncated_jpeg(processor):
    content = encode(picture(), "JPEG")
    with pytest.raises(TruncatedImageError, match="cut short"):
        pixels(processor, content[: len(content) // 2])


@pytest.mark.parametrize(("content", "words"), [(b"", "empty"), (b"<html></html>", "web page"), (b"a,b", "text")])
def test_a_file_that_is_no_picture(processor, tmp_path, content, words):
    path = tmp_path / "photo.jpg"
    path.write_bytes(content)
    with pytest.raises(NotAnImageError, match=words):
        pixels(processor, path)


def test_a_missing_file_and_a_folder(processor, tmp_path):
    with pytest.raises(ImageNotFoundError, match="no such file"):
        pixels(processor, str(tmp_path / "missing.jpg"))
    with pytest.raises(NotAnImageError, match="folder"):
        pixels(processor, str(tmp_path))


def test_a_photo_that_its_exif_turns(processor):
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = Image.new("RGB", (60, 20), "red")
    stored.paste("blue", (0, 0, 30, 20))
    content = encode(stored, exif=exif)
    assert open_image(content).size == (20, 60)
    upright = processor.image_processor(stored.transpose(Image.Transpose.ROTATE_270), return_tensors="pt")
    for source in (content, Image.open(io.BytesIO(content))):
        torch.testing.assert_close(pixels(processor, source), upright["pixel_values"])


def test_the_colour_behind_transparency_is_not_seen(processor):
    hidden = Image.new("RGBA", (30, 20), (255, 0, 0, 0))
    for source in (hidden, encode(hidden), np.asarray(hidden)):
        torch.testing.assert_close(pixels(processor, source), expected(processor, 255, 255, 255))


@pytest.mark.parametrize(
    ("image", "colour"),
    [
        (Image.new("CMYK", (30, 20), (0, 255, 255, 0)), (255, 0, 0)),
        (Image.new("LA", (30, 20), (100, 255)), (100, 100, 100)),
        (Image.new("RGB", (30, 20), (255, 0, 0)).quantize(2), (255, 0, 0)),
        (Image.new("1", (30, 20), 1), (255, 255, 255)),
        (Image.new("L", (30, 20), 100), (100, 100, 100)),
        (Image.new("I", (30, 20), 65535), (255, 255, 255)),
        (Image.new("F", (30, 20), 100.0), (100, 100, 100)),
        (Image.new("HSV", (30, 20), (0, 255, 255)), (255, 0, 0)),
        (Image.new("YCbCr", (30, 20), (100, 128, 128)), (100, 100, 100)),
        (Image.new("LAB", (30, 20), (255, 128, 128)), (255, 255, 255)),
    ],
    ids=lambda value: value.mode if isinstance(value, Image.Image) else "",
)
def test_pictures_of_other_modes(processor, image, colour):
    torch.testing.assert_close(pixels(processor, image), expected(processor, *colour), rtol=0, atol=0.05)


def test_16_bits_are_not_clipped_to_white(processor):
    deep = Image.fromarray(np.full((20, 30), 30000, np.uint16))  # 117 / 255 of 65,535
    assert deep.mode == "I;16"
    for source in (deep, encode(deep), np.asarray(deep)):
        torch.testing.assert_close(pixels(processor, source), expected(processor, 117, 117, 117))


def test_an_animated_gif_is_its_first_frame(processor):
    frames = [Image.new("RGB", (30, 20), colour) for colour in ("red", "blue")]
    content = encode(frames[0], "GIF", save_all=True, append_images=frames[1:])
    torch.testing.assert_close(pixels(processor, content), expected(processor, 255, 0, 0))


@pytest.mark.parametrize("kind", [np.asarray, torch.from_numpy])
def test_floats_from_0_to_1_are_not_rescaled_twice(processor, kind):
    array = np.full((20, 30, 3), 128 / 255, np.float32)
    torch.testing.assert_close(pixels(processor, kind(array)), expected(processor, 128, 128, 128))


def test_who_says_what_the_pixels_are_is_left_alone(processor):
    floats = np.random.default_rng(0).random((3, 20, 30), np.float32)
    for options in ({"do_rescale": False}, {"images_kwargs": {"do_rescale": False}}):
        right = processor.image_processor(floats, do_rescale=False, return_tensors="pt")["pixel_values"]
        torch.testing.assert_close(pixels(processor, [floats], **options), right)
    small = np.random.default_rng(0).integers(0, 256, (3, 40, 3), np.uint8)
    right = processor.image_processor(small, input_data_format="channels_first", return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixels(processor, small, input_data_format="channels_first"), right)


def test_grey_arrays_and_arrays_of_four_channels(processor):
    grey = np.full((20, 30), 100, np.uint8)
    for array in (grey, grey[:, :, None], np.dstack([grey] * 3 + [np.full_like(grey, 255)])):
        torch.testing.assert_close(pixels(processor, array), expected(processor, 100, 100, 100))


def test_an_ambiguous_array_is_refused(processor):
    with pytest.raises(UnsupportedImageError, match="first or the last axis"):
        pixels(processor, np.zeros((3, 3, 3), np.uint8))


@pytest.mark.parametrize("size", [(1, 1), (1, 5000), (5000, 1)])
def test_pictures_of_extreme_shapes(processor, size):
    found = pixels(processor, Image.new("RGB", size, (100, 100, 100)))
    torch.testing.assert_close(found, expected(processor, 100, 100, 100), rtol=0, atol=0.05)


def test_a_line_is_too_thin_for_a_processor_that_resizes_the_shorter_side():
    processor = tiny_processor(tiny_config())
    processor.image_processor.size = {"shortest_edge": 224}
    with pytest.raises(MemoryError, match="a picture of 1 x 20000 pixels is too thin"):
        processor.picture_to_pixels(Image.new("RGB", (1, 20_000)))
    assert processor.picture_to_pixels(Image.new("RGB", (20, 60))).shape[1] == 3


def test_a_picture_without_pixels_is_refused(processor):
    for source in (Image.new("RGB", (0, 5)), np.zeros((0, 30, 3), np.uint8)):
        with pytest.raises(UnsupportedImageError, match="no pixels"):
            pixels(processor, source)


def test_a_decompression_bomb_is_refused(processor):
    content = bytearray(encode(Image.new("1", (8, 8))))
    content[16:24] = b"\0\0\x80\0" * 2  # 32,768 x 32,768
    content[29:33] = zlib.crc32(content[12:29]).to_bytes(4)
    with pytest.raises(ImageTooLargeError, match="limit is 128000000"):
        pixels(processor, bytes(content))


def test_what_open_image_gives_passes_the_pipelines_own_opening_unchanged():
    opened = open_image(Image.new("RGBA", (30, 20), (255, 0, 0, 0)))
    np.testing.assert_array_equal(np.asarray(load_image(opened)), np.asarray(opened))


def test_without_the_package_the_processor_leaves_images_to_transformers(processor, tmp_path):
    processor = processing_captioner.CaptionerProcessor(processor.image_processor, processor.tokenizer)
    picture().save(tmp_path / "picture.png")
    right = processor.image_processor(picture(), return_tensors="pt")["pixel_values"]
    for source in (picture(), str(tmp_path / "picture.png")):
        torch.testing.assert_close(pixels(processor, source), right)

"""ICC profiles: small synthetic ones, and the pixels that they must lead to."""

import io
import itertools
import struct

import numpy as np
import pytest
from PIL import Image, ImageCms

from vlm_caption.images.opening import open_image

# Primaries and white of the profile connection space (D50) as XYZ, one a row: red, green, blue.
ADOBE = np.array([(0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)])
SRGB = np.array([(0.43607, 0.22249, 0.01392), (0.38515, 0.71687, 0.09708), (0.14307, 0.06061, 0.71410)])
D50 = np.array([0.9642, 1.0, 0.8249])


def to_srgb(xyz: np.ndarray) -> np.ndarray:
    """XYZ (D50) to 8-bit sRGB, by IEC 61966-2-1."""
    linear = np.clip(xyz @ np.linalg.inv(SRGB), 0, 1)
    return 255 * np.where(linear <= 0.0031308, 12.92 * linear, 1.055 * linear ** (1 / 2.4) - 0.055)


def profile(space: bytes, device: bytes, pcs: bytes, tags: dict[bytes, bytes]) -> bytes:
    """An ICC profile, version 2."""
    fixed = [round(value * 65536) for value in D50]
    head = struct.pack(">4x4xI4s4s4s12x4s4x4x4x4x8xI3i", 0x02100000, device, space, pcs, b"acsp", 0, *fixed)
    head = head.ljust(128, b"\0")
    text = b"A synthetic profile\0"
    tags = {
        b"desc": b"desc" + struct.pack(">4xI", len(text)) + text + bytes(78),
        b"cprt": b"text\0\0\0\0none\0",
        b"wtpt": xyz_tag(D50),
        **tags,
    }
    table, data = struct.pack(">I", len(tags)), b""
    start = 132 + 12 * len(tags)
    for name, content in tags.items():
        table += struct.pack(">4sII", name, start + len(data), len(content))
        data += content + bytes(-len(content) % 4)
    whole = head + table + data
    return struct.pack(">I", len(whole)) + whole[4:]


def xyz_tag(values) -> bytes:
    return b"XYZ \0\0\0\0" + struct.pack(">3i", *(round(float(value) * 65536) for value in values))


def gamma_tag(gamma: float) -> bytes:
    return b"curv\0\0\0\0" + struct.pack(">IHxx", 1, round(gamma * 256))


def rgb_profile(primaries: np.ndarray, gamma: float) -> bytes:
    tags = {name + b"XYZ": xyz_tag(row) for name, row in zip((b"r", b"g", b"b"), primaries, strict=True)}
    tags |= {name + b"TRC": gamma_tag(gamma) for name in (b"r", b"g", b"b")}
    return profile(b"RGB ", b"mntr", b"XYZ ", tags)


def grey_profile(gamma: float) -> bytes:
    return profile(b"GRAY", b"mntr", b"XYZ ", {b"kTRC": gamma_tag(gamma)})


def cmyk_profile(ink: tuple[int, int, int]) -> bytes:
    """One whose paper is white, whose cyan is the given colour (L*, a*, b*) and whose other inks make black."""
    colours = []
    for c, m, y, k in itertools.product((0, 1), repeat=4):
        lightness, a, b = (0, 0, 0) if m or y or k else ink if c else (100, 0, 0)
        colours += [round(lightness * 2.55), a + 128, b + 128]
    ramp = bytes(range(256))
    matrix = struct.pack(">9i", *(65536 * value for value in (1, 0, 0, 0, 1, 0, 0, 0, 1)))
    table = b"mft1" + struct.pack(">4xBBBx", 4, 3, 2) + matrix + ramp * 4 + bytes(colours) + ramp * 3
    return profile(b"CMYK", b"prtr", b"Lab ", {b"A2B0": table})


def open_with(image: Image.Image, icc_profile: bytes, image_format: str = "TIFF") -> np.ndarray:
    buffer = io.BytesIO()
    image.save(buffer, image_format, icc_profile=icc_profile)
    return np.asarray(open_image(buffer.getvalue()))


COLOURS = np.array(
    [[(0, 0, 0), (255, 255, 255), (128, 128, 128), (100, 150, 100), (150, 90, 60), (90, 100, 170)]], np.uint8
)


@pytest.mark.parametrize("image_format", ["TIFF", "PNG"])
def test_a_wide_gamut_is_brought_to_srgb(image_format):
    expected = to_srgb((COLOURS / 255) ** 2.2 @ ADOBE)
    assert np.abs(expected - COLOURS).max() > 15
    found = open_with(Image.fromarray(COLOURS), rgb_profile(ADOBE, 2.2), image_format)
    np.testing.assert_allclose(found, expected, atol=2)


def test_every_kind_of_source_gives_the_same_colours():
    image = Image.fromarray(COLOURS)
    image.info["icc_profile"] = rgb_profile(ADOBE, 2.2)
    once = open_image(image)
    np.testing.assert_array_equal(np.asarray(once), open_with(image, rgb_profile(ADOBE, 2.2)))
    np.testing.assert_array_equal(np.asarray(open_image(once)), np.asarray(once))


@pytest.mark.parametrize("mode", ["P", "RGBA"])
def test_palettes_and_transparent_pictures_have_a_profile_too(mode):
    colour = (100, 150, 100)
    expected = to_srgb((np.array(colour) / 255) ** 2.2 @ ADOBE)
    image = Image.new("RGB", (8, 8), colour)
    image = image.quantize(4) if mode == "P" else image.convert(mode)
    np.testing.assert_allclose(open_with(image, rgb_profile(ADOBE, 2.2), "PNG")[0, 0], expected, atol=2)
    image = Image.new("RGBA", (8, 8), (*colour, 51))
    on_white = 0.2 * expected + 0.8 * 255
    np.testing.assert_allclose(open_with(image, rgb_profile(ADOBE, 2.2), "PNG")[0, 0], on_white, atol=2)


def test_srgb_by_any_name_changes_nothing():
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    noise = np.random.default_rng(0).integers(0, 256, (40, 40, 3), dtype=np.uint8)
    np.testing.assert_array_equal(open_with(Image.fromarray(noise), srgb), noise)


def test_grey_profiles():
    values = np.array([[0, 30, 128, 255]], np.uint8)
    expected = to_srgb(np.outer(values / 255, D50))
    found = open_with(Image.fromarray(values), grey_profile(1.0))[0]
    assert expected[2, 0] > 185
    np.testing.assert_allclose(found, expected, atol=2)
    deep = Image.fromarray(values.astype(np.uint16) * 257)
    np.testing.assert_allclose(open_with(deep, grey_profile(1.0))[0], expected, atol=2)


@pytest.mark.parametrize("image_format", ["TIFF", "JPEG"])
def test_cmyk_profiles(image_format):
    lightness, a, b = 60, 20, -20
    f = (lightness + 16) / 116
    expected = to_srgb(D50 * np.array([f + a / 500, f, f - b / 200]) ** 3)
    image = Image.new("CMYK", (32, 16), (0, 0, 0, 0))
    image.paste((255, 0, 0, 0), (16, 0, 32, 16))
    found = open_with(image, cmyk_profile((lightness, a, b)), image_format)
    np.testing.assert_allclose(found[8, 4], 255, atol=3)
    np.testing.assert_allclose(found[8, 28], expected, atol=4)


@pytest.mark.parametrize(
    "icc_profile",
    [b"no profile", rgb_profile(ADOBE, 2.2)[:200], rgb_profile(ADOBE, 2.2)[:-60], grey_profile(1.0), bytes(128)],
    ids=["text", "cut", "cut at the end", "of another mode", "zeros"],
)
def test_a_profile_that_cannot_be_used_is_ignored(icc_profile):
    np.testing.assert_array_equal(open_with(Image.fromarray(COLOURS), icc_profile), COLOURS)

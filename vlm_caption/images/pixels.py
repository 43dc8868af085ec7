"""Pixels of every kind to opaque RGB of 8 bits: depths, float ranges, colour profiles, transparency, array layouts.

Pictures may be large. What needs more memory than the picture itself is done in strips of rows.
"""

import functools
import io
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageCms
from PIL.TiffImagePlugin import BITSPERSAMPLE

from ..core.errors import UnsupportedImageError

if TYPE_CHECKING:
    import torch
    from typing_extensions import TypeIs

_CHANNELS = (1, 3, 4)

_STRIP_PIXELS = 1 << 20

# Floats that were resized or computed with overshoot their range by rounding, in parts of the range.
_ROUNDING = 1e-3

# Mode -> the mode and the colour space in which a profile describes it.
_PROFILE_SPACES = {"L": "GRAY", "RGB": "RGB", "CMYK": "CMYK"}

# A profile that moves no colour by more is sRGB, of which there are many spellings; most photos carry one.
_SAME_COLOUR = 2


def is_tensor(source: object) -> "TypeIs[torch.Tensor]":
    """Whether `source` is a tensor. Nothing is one before torch is imported, which takes seconds."""
    return "torch" in sys.modules and isinstance(source, sys.modules["torch"].Tensor)


def read_array(array: "np.ndarray | torch.Tensor", name: str) -> np.ndarray:
    """Bring an array or tensor into the layout height x width (x 1, 3 or 4 channels), without copying where possible.

    The channels may stand in front or behind. Where the shape allows both, as 3 x 3 x 3 does, it is refused.

    Raises:
        UnsupportedImageError: The shape is not that of one picture, or ambiguous, or the dtype is not read.
    """
    if is_tensor(array):
        array = array.detach().cpu()
        array = (array.float() if str(array.dtype) == "torch.bfloat16" else array).numpy()
    shape = array.shape
    if len(shape) == 3:
        first, last = shape[0] in _CHANNELS, shape[2] in _CHANNELS
        if first and last:
            raise UnsupportedImageError(
                name, f"in the shape {shape} the channels may be the first or the last axis: give a Pillow image"
            )
        array = np.moveaxis(array, 0, 2) if first else array
        if array.shape[2:] == (1,):
            array = array[:, :, 0]
    if array.ndim not in (2, 3) or array.shape[2:] not in ((), (3,), (4,)):
        raise UnsupportedImageError(
            name,
            f"the shape is {shape}: give one picture of height x width, or with 1, 3 or 4 channels as the first or "
            "the last axis",
        )
    if not (array.dtype.kind == "f" or array.dtype in (np.uint8, np.uint16)):
        raise UnsupportedImageError(name, f"the pixels are {array.dtype}: give uint8, uint16 or float")
    return array


def from_array(array: np.ndarray, name: str) -> Image.Image:
    """Make an 8-bit image of what `read_array` gave.

    Raises:
        UnsupportedImageError: Float pixels are neither in 0..1 nor in 0..255, or not finite.
    """
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    out = np.empty(array.shape, np.uint8)
    low, high = array.min(), array.max()
    if array.dtype.kind == "u":
        table = _depth_table(int(high))
        for rows in _strips(array.shape[1], array.shape[0]):
            out[rows] = table[array[rows]]
        return Image.fromarray(out)
    top = 1 if high <= 1 + _ROUNDING else 255
    slack = _ROUNDING * top
    if not (low >= -slack and high <= top + slack) or 1 + _ROUNDING < high < 2:  # NaN is in no range
        raise UnsupportedImageError(
            name, f"the float pixels run from {low:g} to {high:g}: give all of them in 0..1 or in 0..255"
        )
    for rows in _strips(array.shape[1], array.shape[0]):
        out[rows] = np.rint(np.clip(array[rows].astype(np.float32) * (255 / top), 0, 255))
    return Image.fromarray(out)


def _depth_table(high: int, depth: int | None = None) -> np.ndarray:
    """What each 16-bit value is in 8 bits; uint8 [65536].

    Without a `depth` that is known, it is the smallest of 8, 10, 12, 14 and 16 bits that holds the highest value.
    Cameras, scanners and microscopes leave 10, 12 or 14 bits unshifted in 16-bit words, seldom with a word about it.
    Taken for 16 bits, 12 of them are a picture that is all but black. The range from the lowest to the highest pixel
    would be worse: it hangs on single pixels, so that no two frames of a camera were alike. The price is that a
    picture of truly 16 bits with no pixel above a quarter of the range is shown brighter than it is.
    """
    if depth is None:
        depth = next(bits for bits in (8, 10, 12, 14, 16) if high < 1 << bits)
    top = (1 << depth) - 1
    return np.minimum((np.arange(1 << 16) * 255 + top // 2) // top, 255).astype(np.uint8)


def to_rgb(image: Image.Image, name: str) -> Image.Image:
    """Make a decoded image RGB: deep pixels scaled to 8 bits, its ICC profile applied, transparency laid on white.

    Gives the image itself where there is nothing to do.

    Raises:
        UnsupportedImageError: Its pixels are out of range, or of a mode that Pillow cannot convert.
    """
    profile = image.info.get("icc_profile")
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        image = _to_8_bits(image, name)
    convert = _Converter(image, profile if isinstance(profile, bytes) else None)
    if image.mode == "RGB" and not convert.transparent and convert.transform is None:
        return image
    rgb = Image.new("RGB", image.size)
    try:
        for rows in _strips(*image.size):
            rgb.paste(convert(image.crop((0, rows.start, image.width, rows.stop))), (0, rows.start))
    except ValueError as error:
        raise UnsupportedImageError(name, f"pixels of mode {image.mode} are not read: convert it to RGB") from error
    return rgb


def _strips(width: int, height: int) -> Iterator[slice]:
    rows = max(1, _STRIP_PIXELS // width)
    for start in range(0, height, rows):
        yield slice(start, min(start + rows, height))


def _to_8_bits(image: Image.Image, name: str) -> Image.Image:
    if image.mode == "F":
        grey = from_array(np.asarray(image), name)
    else:
        pixels = np.asarray(image)
        low, high = int(pixels.min()), int(pixels.max())
        if low < 0 or high > 65535:
            raise UnsupportedImageError(name, f"the pixels run from {low} to {high}: give 8 or 16 bits a channel")
        grey = Image.fromarray(_depth_table(high, _known_depth(image))[pixels])
        if "transparency" in image.info:  # a value of the deep pixels
            grey.putalpha(Image.fromarray(np.where(pixels == image.info["transparency"], 0, 255).astype(np.uint8)))
    return grey


def _known_depth(image: Image.Image) -> int | None:
    """The bits of a deep picture's range, where its file says so."""
    if image.format in ("JPEG2000", "PPM"):
        return 16  # their headers say it, and Pillow has scaled the pixels
    bits = getattr(image, "tag_v2", {}).get(BITSPERSAMPLE, (16,))[0]
    return bits if bits < 16 else None


class _Converter:
    """Makes strips of one image RGB."""

    def __init__(self, image: Image.Image, profile: bytes | None) -> None:
        self.transparent = image.has_transparency_data
        self.base = "L" if image.mode in ("1", "L", "LA") else "CMYK" if image.mode == "CMYK" else "RGB"
        self.transform = None
        if profile and image.mode != "LAB":  # what Pillow makes of that is a transform already
            self.transform = _srgb_transform(profile, self.base)

    def __call__(self, strip: Image.Image) -> Image.Image:
        if self.transform is None:
            return _on_white(strip.convert("RGBA")) if self.transparent else strip.convert("RGB")
        rgb = self.transform.apply(strip.convert(self.base))
        if self.transparent:
            rgb.putalpha(strip.convert("RGBA").getchannel("A"))
            return _on_white(rgb)
        return rgb


def _on_white(image: Image.Image) -> Image.Image:
    white = Image.new("RGB", image.size, "white")
    white.paste(image, mask=image)
    return white


@functools.lru_cache(maxsize=16)
def _srgb_transform(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """The way from a profile's colours to sRGB, or None where it is damaged, of another mode or sRGB itself."""
    try:
        source = ImageCms.getOpenProfile(io.BytesIO(profile))
        if source.profile.xcolor_space.strip() != _PROFILE_SPACES[mode]:
            return None
        transform = ImageCms.buildTransform(source, ImageCms.createProfile("sRGB"), mode, "RGB")
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return None
    if mode == "RGB":
        levels = np.linspace(0, 255, 9).round().astype(np.uint8)
        cube = np.stack(np.meshgrid(levels, levels, levels), axis=-1).reshape(9, 81, 3)
        moved = np.asarray(transform.apply(Image.fromarray(cube))).astype(int) - cube
        if np.abs(moved).max() <= _SAME_COLOUR:
            return None
    return transform

"""Turns pictures into pixel values, equal to those of transformers' image processors for Pillow."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from ..images.limits import check_resized


@dataclass(frozen=True)
class PixelSettings:
    """How a picture becomes pixel values.

    Attributes:
        size: Height and width after resizing; one number for the shorter side; None to keep the size.
        resample: Pillow's number of the filter.
        crop: Height and width of the middle that is cut out, with black where the picture is smaller; None for all.
        factor: What 0..255 is multiplied by.
        mean, std: What is then subtracted from each channel, and what the rest is divided by.
    """

    size: Sequence[int] | None
    resample: int
    crop: Sequence[int] | None
    factor: float
    mean: Sequence[float]
    std: Sequence[float]


def to_pixels(image: Image.Image, settings: PixelSettings) -> np.ndarray:
    """Returns a picture's pixel values, float32 [1, 3, H, W].

    Args:
        image: An RGB picture, as `open_image` returns it.
        settings: How it is resized, cropped and scaled.

    Raises:
        MemoryError: See `check_resized`.
    """
    if settings.size is not None:
        height, width = _new_size(image, settings.size)
        image = image.resize((width, height), Image.Resampling(settings.resample))
    pixels = np.asarray(image)
    if settings.crop is not None:
        pixels = _crop(pixels, *settings.crop)
    # In these dtypes and this order, so that the last bit is the same too.
    values = (pixels.astype(np.float64) * settings.factor).astype(np.float32)
    values = (values - np.asarray(settings.mean, np.float32)) / np.asarray(settings.std, np.float32)
    return np.ascontiguousarray(values.transpose(2, 0, 1)[None])


def _new_size(image: Image.Image, size: Sequence[int]) -> tuple[int, int]:
    if len(size) == 2:
        return size[0], size[1]
    check_resized(*image.size, size[0])
    shorter, longer = sorted(image.size)
    longer = int(size[0] * longer / shorter)
    return (longer, size[0]) if image.width <= image.height else (size[0], longer)


def _crop(pixels: np.ndarray, height: int, width: int) -> np.ndarray:
    """Returns the middle of pixels [H, W, 3], uint8 [height, width, 3]."""
    top, left = (pixels.shape[0] - height) // 2, (pixels.shape[1] - width) // 2
    if top >= 0 and left >= 0:
        return pixels[top : top + height, left : left + width]
    # Centred in a larger frame first, where the odd row or column goes before the picture.
    frame = np.zeros((max(height, pixels.shape[0]), max(width, pixels.shape[1]), 3), pixels.dtype)
    above, before = -((pixels.shape[0] - frame.shape[0]) // 2), -((pixels.shape[1] - frame.shape[1]) // 2)
    frame[above : above + pixels.shape[0], before : before + pixels.shape[1]] = pixels
    return frame[top + above : top + above + height, left + before : left + before + width]

"""Draws heat over a picture: NumPy and Pillow alone."""

import numpy as np
from PIL import Image

# The longest side of what is drawn, in pixels.
SIZE = 768

_WARM, _COLD = (230, 60, 20), (40, 90, 200)
_STRONGEST = 0.75  # how much of the colour covers the picture


def draw_heat(image: Image.Image, heat: np.ndarray) -> Image.Image:
    """Returns a picture under its heat: red where patches speak for the caption, blue where they speak against it.

    Args:
        image: The part of the picture that the captioner saw.
        heat: float [rows, columns]. The largest absolute value has the full colour.
    """
    base = image.convert("RGB")
    base.thumbnail((SIZE, SIZE))
    strength = np.abs(heat).max()
    scaled = heat / strength if strength > 0 else np.zeros_like(heat)
    smooth = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(base.size, Image.Resampling.BICUBIC))
    share = np.clip(np.abs(smooth), 0, 1)[..., None] * _STRONGEST
    colour = np.where(smooth[..., None] > 0, np.array(_WARM), np.array(_COLD))
    grey = np.asarray(base.convert("L").convert("RGB"), dtype=np.float32)  # so that the colour is the heat's alone
    return Image.fromarray((grey * (1 - share) + colour * share).round().astype(np.uint8))

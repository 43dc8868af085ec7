"""What an export shows the captioner, to check its graphs and to measure its activations. No photos are needed."""

import numpy as np
from PIL import Image

from ..captioning.captioner import Captioner
from ..core.prompts import QUESTION

# Wider and taller than what towers see, and smaller.
_SIZES = ((500, 375), (333, 500), (97, 131))

_SPOTTED, _SPOTTED_SIZE = 8, 224


def sample_pictures() -> list[Image.Image]:
    """Returns pictures of random pixels and several sizes."""
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8)) for width, height in _SIZES]


def spotted_pictures() -> list[Image.Image]:
    """Returns pictures of random colours, from four large blurred spots to single pixels."""
    rng = np.random.default_rng(0)
    sides = np.geomspace(2, _SPOTTED_SIZE, _SPOTTED).round().astype(int)
    spots = [Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)) for side in sides]
    return [picture.resize((_SPOTTED_SIZE, _SPOTTED_SIZE), Image.Resampling.BICUBIC) for picture in spots]


def sample_question(captioner: Captioner) -> str | None:
    """Returns a question, if the captioner's prompt takes one."""
    return "What?" if QUESTION in captioner.prompt else None

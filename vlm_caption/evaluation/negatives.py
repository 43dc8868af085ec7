"""Pictures that no caption is right for: blank, noise, gradients, text, drawings, shadows and shuffled photos.

They teach a confidence that a picture may be of no kind that the captioner knows. All are drawn by code from a seed.
"""

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
from PIL import Image, ImageDraw

_SIZE = 224
_LETTERS = "abcdefghijklmnopqrstuvwxyz"

Generator = np.random.Generator


def _uniform(generator: Generator) -> Image.Image:
    """One colour; now and then black, white or grey."""
    colour = generator.integers(0, 256, 3) if generator.random() < 0.6 else np.full(3, generator.choice([0, 128, 255]))
    return Image.new("RGB", (_SIZE, _SIZE), tuple(map(int, colour)))


def _noise(generator: Generator) -> Image.Image:
    """Noise in grains of one to 32 pixels, in colour or grey."""
    side, channels = _SIZE // int(generator.choice([1, 2, 4, 8, 32])), 3 if generator.random() < 0.7 else 1
    pixels = generator.integers(0, 256, (side, side, channels), dtype=np.uint8)
    pixels = np.ascontiguousarray(np.broadcast_to(pixels, (side, side, 3)))
    resample = Image.Resampling.NEAREST if generator.random() < 0.5 else Image.Resampling.BICUBIC
    return Image.fromarray(pixels).resize((_SIZE, _SIZE), resample)


def _gradient(generator: Generator) -> Image.Image:
    """From one colour to another, in any direction."""
    start, end = generator.uniform(0, 255, (2, 3))
    angle = generator.uniform(0, 2 * np.pi)
    rows, columns = np.mgrid[-1 : 1 : _SIZE * 1j, -1 : 1 : _SIZE * 1j]
    place = (np.cos(angle) * columns + np.sin(angle) * rows + np.sqrt(2)) / (2 * np.sqrt(2))
    return Image.fromarray((start + (end - start) * place[..., None]).astype(np.uint8))


def _text(generator: Generator) -> Image.Image:
    """Lines of random words on paper."""
    dark_on_light = generator.random() < 0.7
    paper, ink = ("white", "black") if dark_on_light else ("black", "white")
    image = Image.new("RGB", (_SIZE, _SIZE), paper)
    draw = ImageDraw.Draw(image)
    size = int(generator.integers(10, 34))
    for top in range(8, _SIZE - size, int(size * 1.4)):
        words = ("".join(generator.choice(list(_LETTERS), generator.integers(2, 9))) for _ in range(8))
        draw.text((8, top), " ".join(words), fill=ink, font_size=size)
    return image


def _drawing(generator: Generator) -> Image.Image:
    """Lines, ellipses and boxes, as in sketches, diagrams and plots."""
    image = Image.new("RGB", (_SIZE, _SIZE), "white")
    draw = ImageDraw.Draw(image)
    coloured = generator.random() < 0.5
    for _ in range(int(generator.integers(3, 20))):
        (left, right), (top, bottom) = (map(int, np.sort(generator.integers(0, _SIZE, 2))) for _ in range(2))
        colour = tuple(map(int, generator.integers(0, 256, 3))) if coloured else (0, 0, 0)
        kind, width = generator.integers(3), int(generator.integers(1, 6))
        if kind == 0:
            ends = [(left, top), (right, bottom)] if generator.random() < 0.5 else [(left, bottom), (right, top)]
            draw.line(ends, fill=colour, width=width)
        else:
            fill = colour if coloured and generator.random() < 0.5 else None
            shape = draw.ellipse if kind == 1 else draw.rectangle
            shape((left, top, right, bottom), outline=colour, fill=fill, width=width)
    return image


def _shadows(generator: Generator) -> Image.Image:
    """Soft grey shapes with grain, as in an X-ray or under a microscope."""
    rows, columns = np.mgrid[:_SIZE, :_SIZE]
    light = np.zeros((_SIZE, _SIZE))
    for _ in range(int(generator.integers(3, 30))):
        row, column = generator.uniform(0, _SIZE, 2)
        height, width = generator.uniform(5, 70, 2)
        light += generator.uniform(-0.5, 1) * np.exp(
            -(((rows - row) / height) ** 2) - ((columns - column) / width) ** 2
        )
    light = (light - light.min()) / max(np.ptp(light), 1e-9) * 230
    light += generator.normal(0, generator.uniform(0, 15), light.shape)
    return Image.fromarray(light.clip(0, 255).astype(np.uint8)).convert("RGB")


def _shuffled(photos: Sequence[Image.Image], generator: Generator) -> Image.Image:
    """A photo cut into squares, which change places."""
    photo = photos[int(generator.integers(len(photos)))].convert("RGB").resize((_SIZE, _SIZE))
    side = int(generator.choice([8, 14, 28]))
    count = _SIZE // side
    pixels = np.array(photo).reshape(count, side, count, side, 3).swapaxes(1, 2).reshape(-1, side, side, 3)
    pixels = generator.permutation(pixels).reshape(count, count, side, side, 3).swapaxes(1, 2)
    return Image.fromarray(np.ascontiguousarray(pixels.reshape(_SIZE, _SIZE, 3)))


def draw_negatives(each: int, photos: Sequence[Image.Image], seed: int = 0) -> list[tuple[str, Image.Image]]:
    """Returns pictures that no caption is right for, each with its kind.

    Args:
        each: How many of each kind.
        photos: Photos to shuffle; without any, there are no shuffled ones.
        seed: Of the drawing.
    """
    kinds: dict[str, Callable[[Generator], Image.Image]] = {
        "uniform": _uniform,
        "noise": _noise,
        "gradient": _gradient,
        "text": _text,
        "drawing": _drawing,
        "shadows": _shadows,
    }
    if photos:
        kinds["shuffled"] = partial(_shuffled, photos)
    generator = np.random.default_rng(seed)
    return [(kind, draw(generator)) for kind, draw in kinds.items() for _ in range(each)]

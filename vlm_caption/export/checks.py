"""Compares an exported captioner with the one it came from, before it gets its name."""

from pathlib import Path
from typing import cast

import numpy as np
import torch

from ..captioning.captioner import Captioner
from ..captioning.signals import pool_features
from ..core.errors import CheckpointError
from ..runtime.files import LANGUAGE, VISION, ExportSettings
from ..runtime.graphs import GraphRows, LanguageGraph, VisionGraph
from ..runtime.pixels import PixelSettings, to_pixels
from .samples import sample_pictures, sample_question

# Relative to the greatest value. Sums are taken in another order, and only the last digits may differ.
_TOLERANCE = 1e-3


def check_pixels(captioner: Captioner, settings: ExportSettings) -> None:
    """Checks that the runtime makes the same pixel values as the image processor, to the last bit.

    Raises:
        CheckpointError: It does not.
    """
    for picture in sample_pictures():
        expected = captioner.processor.image_processor(picture, return_tensors="np")["pixel_values"]
        if not np.array_equal(to_pixels(picture, PixelSettings(**settings.pixels)), expected):
            raise CheckpointError(
                f"The image processor, a {type(captioner.processor.image_processor).__name__}, makes other pixels "
                "than the runtime does, so this captioner cannot be exported."
            )


@torch.inference_mode()
def check_graphs(captioner: Captioner, folder: Path, settings: ExportSettings) -> None:
    """Checks that graphs in float32 give the model's own numbers: image tokens, a prompt's logits, and a next token's.

    Args:
        captioner: The captioner that is exported.
        folder: The folder with its graphs.
        settings: Its settings.

    Raises:
        CheckpointError: They give others.
    """
    core = captioner.model.core
    images = sample_pictures()[:2]
    pixels = np.concatenate([to_pixels(image, PixelSettings(**settings.pixels)) for image in images])
    features = cast(torch.Tensor, core.encode_images(torch.from_numpy(pixels)).pooler_output)
    expected = cast(torch.Tensor, core.get_image_features(image_features=features).pooler_output)
    embeds, pooled = VisionGraph(folder / VISION, None).run(pixels)
    _compare("vision tower", embeds, expected)
    _compare("vision tower", pooled, pool_features(features))
    head, [tail] = captioner.processor.encode_prompts([sample_question(captioner)])
    prompt = head + tail
    token = 0  # of text, whichever
    graph = LanguageGraph(folder / LANGUAGE, None, settings.cache)
    rows: GraphRows = graph.start([prompt, prompt], embeds)
    ids = torch.tensor([[*prompt, token]] * 2)
    logits = captioner.model(ids, image_features=features, use_cache=False).logits[:, -2:]
    _compare("language model", rows.read_prompts(1, full=True).full, logits[:, 0])
    swapped = rows.advance(np.array([token, token]), np.array([1, 0]), 1, full=True)
    _compare("language model", swapped.full, logits[[1, 0], 1])


def _compare(part: str, got: np.ndarray | None, expected: torch.Tensor) -> None:
    difference = float(np.abs(got - expected.numpy()).max() / expected.abs().max())
    if not difference < _TOLERANCE:
        raise CheckpointError(
            f"The exported {part} gives other numbers than the checkpoint's (by {difference:.2g} of the greatest), so "
            "this captioner cannot be exported."
        )

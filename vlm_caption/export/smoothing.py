"""Moves the outliers of a linear layer's inputs into its weights, which rounds both with less error.

In language models, a few channels of the hidden states are ten to a hundred times as large as the others. With one
scale for all channels of a token, the others are left with few of the 255 values of 8 bits. So each channel is divided
by a factor, and the weights that read it are multiplied by the same factor: the product does not change. This is
SmoothQuant (Xiao et al. 2023, arXiv:2211.10438).
"""

from collections.abc import Mapping

import numpy as np
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from ..captioning.captioner import Captioner
from .samples import sample_question, spotted_pictures

# In its paper "alpha": which share of the outliers the weights take over, in the exponent.
_SHARE = 0.5

# The greatest absolute input of each channel, float [K], of each linear layer.
GreatestInputs = Mapping[nn.Module, np.ndarray]


def greatest_inputs(captioner: Captioner) -> GreatestInputs:
    """Measures the inputs of the language model's linear layers while it captions random pictures.

    Which channels have outliers hardly depends on the pictures, so no photos are needed.

    Args:
        captioner: The captioner, in float32.

    Returns:
        The greatest absolute input of each channel, float [K], of each linear layer; of the head too.
    """
    greatest: dict[nn.Module, torch.Tensor] = {}

    def measure(layer: nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].detach().abs().flatten(0, -2).amax(dim=0)
        greatest[layer] = torch.maximum(greatest.get(layer, values), values)

    layers = [
        layer for layer in captioner.model.core.language_model.modules() if isinstance(layer, nn.Linear | Conv1D)
    ]
    hooks = [layer.register_forward_pre_hook(measure) for layer in layers]
    try:
        captioner.caption(spotted_pictures(), question=sample_question(captioner), num_beams=1, do_sample=False)
    finally:
        for hook in hooks:
            hook.remove()
    return {layer: values.float().numpy() for layer, values in greatest.items()}


def smoothing_factors(greatest: np.ndarray | None, weight: np.ndarray) -> np.ndarray:
    """Returns what each channel of a linear layer's input is divided by, and its weights are multiplied by.

    Args:
        greatest: The greatest absolute input of each channel, float [K]; None if it is not known.
        weight: float [K, N].

    Returns:
        The factors, positive, float32 [K]; all are 1 if the greatest inputs are not known.
    """
    if greatest is None:
        return np.ones(len(weight), np.float32)
    least = np.float32(1e-5)  # of channels that are always 0
    inputs = np.maximum(greatest, least) ** _SHARE
    weights = np.maximum(np.abs(weight).max(axis=1), least) ** (1 - _SHARE)
    return (inputs / weights).astype(np.float32)

"""An exponential moving average of the trained weights, which is evaluated and kept in their place."""

import contextlib
from collections.abc import Generator
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from .checkpoints import check_shapes, reading

AVERAGE_NAME = "average.safetensors"


class AveragedWeights:
    """The exponential moving average of a model's trained parameters, as `torch.optim.swa_utils` computes it.

    Until it has seen many steps, it forgets faster: its decay after step t is at most (1 + t) / (10 + t), as in
    TensorFlow and timm. Otherwise it would hold on to the first, random weights.

    Args:
        model: The model, whose parameters that require a gradient are averaged. The average begins with their values.
        decay: The weight of the average so far, against that of the new weights.

    Attributes:
        weights: The averages by the parameters' names, on the model's device.
    """

    def __init__(self, model: nn.Module, decay: float):
        self.decay = decay
        self._parameters = {name: weight for name, weight in model.named_parameters() if weight.requires_grad}
        self.weights = {name: weight.detach().clone() for name, weight in self._parameters.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after a step of the optimizer, which are counted from 1."""
        average = get_ema_multi_avg_fn(min(self.decay, (1 + step) / (10 + step)))
        average(list(self.weights.values()), list(self._parameters.values()), step)

    @contextlib.contextmanager
    def in_model(self) -> Generator[None]:
        """Puts the averages into the model, and afterwards its own weights again."""
        own = {name: weight.detach().clone() for name, weight in self._parameters.items()}
        self._fill(self.weights)
        try:
            yield
        finally:
            self._fill(own)

    @torch.no_grad()
    def _fill(self, weights: dict[str, torch.Tensor]) -> None:
        for name, weight in self._parameters.items():
            weight.copy_(weights[name])

    def save(self, checkpoint: Path) -> None:
        """Writes the averages to a checkpoint."""
        save_file({name: weight.contiguous() for name, weight in self.weights.items()}, checkpoint / AVERAGE_NAME)

    def load(self, checkpoint: Path) -> None:
        """Takes up the averages of a checkpoint.

        Raises:
            CheckpointError: They are damaged or missing.
        """
        with reading(checkpoint):
            saved = load_file(checkpoint / AVERAGE_NAME)
            check_shapes({name: saved[name] for name in self.weights}, self.weights)
            for name, weight in self.weights.items():
                weight.copy_(saved[name])

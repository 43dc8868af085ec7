"""Images that are sometimes mirrored in training: which ones, and their inputs."""

import dataclasses
import hashlib

import torch

from .inputs import ImageInputs


class FlippedInputs:
    """Gives a batch's images to the model, about half of them mirrored left to right.

    Whether an image is mirrored in an epoch is drawn by a hash of seed, epoch and image, so that a resumed run draws
    the same. Where features are cached, those of the mirrored images are beside the others, under another key.

    Args:
        plain: The inputs of the images as they are.
        flipped: The inputs of the same images mirrored; see `flip`.
        seed: The seed of the draw.

    Attributes:
        epoch: The epoch to draw for, from 0; the training loop sets it.
    """

    def __init__(self, plain: ImageInputs, flipped: ImageInputs, seed: int = 0):
        self.plain, self.flipped, self.seed = plain, flipped, seed
        self.epoch = 0

    def draws(self, row: dict) -> bool:
        """Returns whether the image of a row with `image` is mirrored in this epoch."""
        draw = hashlib.sha256(f"flip {self.seed} {self.epoch} {row['image']}".encode()).digest()
        return draw[0] % 2 == 1

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Returns what `ImageInputs` returns for the rows, in their order."""
        chosen = [(self.flipped if self.draws(row) else self.plain)([row]) for row in rows]
        return {name: torch.cat([inputs[name] for inputs in chosen]) for name in chosen[0]}


def flip(inputs: ImageInputs) -> ImageInputs:
    """Returns the inputs of the same images mirrored left to right, with cached features if the others have them."""
    return ImageInputs(
        inputs.model,
        inputs.processor,
        [inputs.images[row] for row in inputs.rows],
        cache=inputs.features is not None,
        features_dir=inputs.features_dir,
        open_picture=dataclasses.replace(inputs.open_picture, flip=True),
    )

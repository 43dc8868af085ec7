"""Gives a batch's images to the model, as cached features or as pixels.

Vectors that were computed elsewhere take the place of features.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset

from ..core.errors import ImageError
from ..data.bad_images import BadImages, PictureOpener, check_pictures
from ..data.vectors import Vectors
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.processor import CaptionerProcessor
from .cache import image_features
from .contents import as_image_error
from .shards import FeatureTable


class ImageInputs:
    """Gives a batch's images to the model, as cached features, as pixels, or as given vectors.

    Args:
        model: The captioner.
        processor: The captioner's processor.
        images: The dataset's column `image`. Pictures are read when they are needed.
        cache: Whether to compute features once. The vision tower must then not change. If torch.distributed is
            initialised, all processes share the work.
        features_dir: The folder of the features; by default in the package's cache.
        open_picture: Opens an image; by default within the limits of `open_image`.
        bad: Gets the images that cannot be opened. All images are then opened now, and a row's `index` counts only
            those that can be opened.
        vectors: The vectors to caption. `images` then names their rows, and no picture is read.

    Raises:
        ImageError: An image cannot be opened, now or in a batch, and `bad` is not given.
        DataError: Too many images cannot be opened, or a vector holds a number that is not finite.
    """

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        images: Sequence[str],
        cache: bool,
        features_dir: Path | None = None,
        open_picture: PictureOpener | None = None,
        bad: BadImages | None = None,
        vectors: Vectors | None = None,
    ):
        self.model, self.processor, self.images, self.features_dir = model, processor, images, features_dir
        self.open_picture = open_picture or PictureOpener()
        self.features: FeatureTable | Vectors | None = None
        failed: set[int] = set()
        on_error = None
        if bad is not None:

            def on_error(row: int, error: ImageError) -> None:
                failed.add(row)
                bad.add(images[row], error.reason)

        if vectors is not None:
            self.features = vectors.select(images)
        elif cache:
            self.features = image_features(
                model, processor, images, features_dir, open_picture=self.open_picture, on_error=on_error
            )
        elif on_error is not None:
            check_pictures(images, self.open_picture, on_error)
        self.rows: Sequence[int] = range(len(images))
        if failed:
            self.rows = [row for row in self.rows if row not in failed]

    def keep(self, dataset: Dataset) -> Dataset:
        """Returns the dataset of the images without the rows of images that cannot be opened."""
        return dataset if len(self.rows) == len(dataset) else dataset.select(self.rows)

    def __call__(self, rows: list[dict]) -> dict[str, torch.Tensor]:
        """Returns `image_features`, float [B, N, D_vision], or `pixel_values`, float [B, 3, H, W]."""
        if self.features is not None:
            return {"image_features": self.features[[self.rows[row["index"]] for row in rows]]}
        return {"pixel_values": torch.cat([self._pixels(self.images[self.rows[row["index"]]]) for row in rows])}

    def _pixels(self, image: str) -> torch.Tensor:
        try:
            return self.processor.picture_to_pixels(self.open_picture(image))
        except MemoryError as error:
            raise as_image_error(image, error) from error

    @torch.no_grad()
    def sample_features(self, count: int = 512) -> torch.Tensor:
        """Returns features of at least `count` evenly spread images, or of all; float [S, N, D_vision], on the CPU."""
        chosen = range(0, len(self.rows), max(1, len(self.rows) // count))
        if self.features is not None:
            return self.features[[self.rows[index] for index in chosen]]
        batches = (self([{"index": index}])["pixel_values"] for index in chosen)  # one at a time: pixels are many
        return torch.cat([self.model.core.encode_images(pixels)["pooler_output"].cpu() for pixels in batches])


def with_index(dataset: Dataset) -> Dataset:
    """Returns the dataset with the column `index`, a row's place in the table of its images."""
    return dataset.add_column("index", np.arange(len(dataset)))

"""One vector for each picture, by which a datastore finds pictures that are alike."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.configuration import CaptionerConfig
from ..towers.processor import CaptionerProcessor
from .datastore import PICTURES_AT_A_TIME, Datastore, VectorKind

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.bad_images import BadImages, PictureOpener


def picture_vectors(config: CaptionerConfig, features: torch.Tensor) -> np.ndarray:
    """Returns one vector for each picture: the pooled one, or the mean of all its tokens; of the last layer chosen.

    Args:
        config: The captioner's config.
        features: float [I, N, D_vision].

    Returns:
        float32 [I, D].
    """
    features = features[..., -_size(config) :].detach().float().cpu()
    return (features[:, 0] if has_pooled_vector(config) else features.mean(dim=1)).numpy()


def vector_kind(config: CaptionerConfig) -> VectorKind:
    """Returns what `picture_vectors` are."""
    backbone: dict[str, Any] = config.vision_backbone or {}
    layers = config.vision_feature_layers
    origin = (
        f"{'pooled' if has_pooled_vector(config) else 'mean'} of {f'layer {layers[-1]}' if layers else 'the output'}"
    )
    return VectorKind(backbone.get("fingerprint") or "", origin, _size(config))


def collect_datastore(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    dataset: "Dataset",
    open_picture: "PictureOpener | None" = None,
    bad: "BadImages | None" = None,
) -> Datastore:
    """Collects captioned pictures. Features come from the cache if they are there.

    Args:
        model: The captioner that will look pictures up. Its vision tower must be frozen.
        processor: The captioner's processor.
        dataset: Rows with `image` and `captions`.
        open_picture: Opens an image; by default within the limits of `open_image`.
        bad: Gets the images that cannot be opened, which are left out.

    Raises:
        ImageError: An image cannot be opened, and `bad` is not given.
        DataError: Too many images cannot be opened.
        ValueError: There are no pictures.
    """
    from ..features.inputs import ImageInputs  # imports datasets, which captioning does without

    images = ImageInputs(model, processor, dataset["image"], cache=True, open_picture=open_picture, bad=bad)
    captions = list(images.keep(dataset)["captions"])
    indices = range(len(captions))
    chunks = [indices[start : start + PICTURES_AT_A_TIME] for start in indices[::PICTURES_AT_A_TIME]]
    features = (images([{"index": index} for index in chunk])["image_features"] for chunk in chunks)
    vectors = np.concatenate([picture_vectors(model.config, of_chunk) for of_chunk in features])
    return Datastore.build(vectors, captions, vector_kind(model.config))


def has_pooled_vector(config: CaptionerConfig) -> bool:
    """Returns whether the first of a picture's tokens is the tower's pooled vector."""
    return config.image_tokens == "pooled" or config.pooled_in_front


def _size(config: CaptionerConfig) -> int:
    return config.vision_feature_size // len(config.vision_feature_layers or [0])

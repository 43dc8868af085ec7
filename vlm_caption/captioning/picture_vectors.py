"""One vector for each picture, by which a datastore finds pictures that are alike."""

from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..core.digests import digest_tensors
from ..model.freezing import holds_trained_weights, merged_state
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
    features = features[..., -vector_size(config) :].detach().float().cpu()
    return (features[:, 0] if has_pooled_vector(config) else features.mean(dim=1)).numpy()


def vector_kind(model: CaptionerForConditionalGeneration) -> VectorKind:
    """Returns what a captioner's `picture_vectors` are."""
    config: CaptionerConfig = model.config
    layers = config.vision_feature_layers
    if has_pooled_vector(config):
        origin = "pooled" if layers else f"pooled ({config.pooled_feature})"
    else:
        origin = f"mean ({config.image_tokens})"
    origin = f"{origin} of {f'layer {layers[-1]}' if layers else 'the output'}"
    return VectorKind(_tower(model), origin, vector_size(config))


def _tower(model: CaptionerForConditionalGeneration) -> str:
    """Returns the fingerprint of the vision tower's files; or of its weights, if these are not those of the files."""
    core: Any = model.base_model
    known = (core.config.vision_backbone or {}).get("fingerprint")
    is_adapted = core.config.vision_adapter is not None
    if known and not is_adapted and not holds_trained_weights(core, "vision_tower"):
        return known
    state = merged_state(core)[0] if is_adapted else core.state_dict()
    # In bfloat16, because a tower may be held in it here and not there.
    weights = (
        (name, tensor.bfloat16() if tensor.is_floating_point() else tensor)
        for name, tensor in state.items()
        if name.startswith("vision_tower.")
    )
    return f"sha256:{digest_tensors(weights).hexdigest()}"


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
    return Datastore.build(vectors, captions, vector_kind(model))


def has_pooled_vector(config: CaptionerConfig) -> bool:
    """Returns whether the first of a picture's tokens is the tower's pooled vector."""
    return config.image_tokens == "pooled" or config.pooled_in_front


def vector_size(config: CaptionerConfig) -> int:
    """Returns the number of numbers of a vector, D."""
    return config.vision_feature_size // len(config.vision_feature_layers or [0])

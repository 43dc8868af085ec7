"""Frozen features, computed once: what a frozen vision tower says of each image, kept on disk for every later epoch.

A cache file holds one tensor, the image tokens of a list of images. Its name is a fingerprint of all that they depend
on: the tower's weights and config, its preprocessing, the token choice, the dtype and every image's bytes. A change in
any of them names another file, so nothing stale is ever read.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .backbones import cache_dir
from .configuration_captioner import CaptionerConfig
from .console import progress
from .data import Place, open_place
from .images import open_image
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerProcessor

logger = logging.getLogger(__name__)

# Settings of the composed model that decide which tokens are taken from the tower's output.
_TOKEN_SETTINGS = ("image_tokens", "image_grid", "pooled_in_front", "pooled_feature")

# Fields of a tower's config that saving or loading it changes.
_INCIDENTAL = ("_name_or_path", "architectures", "dtype")


def features_key(
    model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, images: Sequence[str], dtype: torch.dtype
) -> str:
    """SHA-256 of everything that the features of `images` depend on, as hex.

    Raises:
        ImageError: if an image's file cannot be read.
    """
    digest = hashlib.sha256()
    config: CaptionerConfig = model.config
    tower_config = model.core.vision_tower.config.to_dict()
    settings = {
        # Not the backbone's fingerprint: what counts is what is in the model, wherever it came from.
        "tower_weights": _weights_digest(model),
        "tower_config": {name: value for name, value in tower_config.items() if name not in _INCIDENTAL},
        "tower_dtype": str(model.core.vision_tower.dtype),
        "preprocessing": processor.image_processor.to_dict(),
        "tokens": {name: getattr(config, name) for name in _TOKEN_SETTINGS},
        "dtype": str(dtype),
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for image in images:
        digest.update(hashlib.sha256(Place.parse(image).read()).digest())
    return digest.hexdigest()


def _weights_digest(model: CaptionerForConditionalGeneration) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(model.core.vision_tower.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@torch.inference_mode()
def image_features(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    images: Sequence[str],
    directory: Path | None = None,
    batch_size: int = 32,
    dtype: torch.dtype = torch.bfloat16,
) -> torch.Tensor:
    """The vision tower's tokens of each image, memory-mapped from the cache, computed first where they are not there.

    Args:
        model: its vision tower must be frozen.
        processor: the model's.
        images: paths or other places (`vlm_caption.data.Place`), as a dataset's column `image` has them.
        directory: the cache's folder; by default `features` in the package's cache.
        batch_size: images that go through the tower at once.
        dtype: of the stored features.

    Returns:
        `dtype` [len(images), N, D_vision], in the order of `images`.

    Raises:
        ImageError: if an image cannot be read.
    """
    directory = cache_dir() / "features" if directory is None else directory
    path = directory / f"{features_key(model, processor, images, dtype)}.safetensors"
    if path.exists():
        logger.info("Image features: %d images from %s", len(images), path)
    else:
        width = model.config.vision_feature_size
        tokens = model.config.image_seq_length - (model.config.image_start == "learned")
        size = len(images) * tokens * width * dtype.itemsize
        logger.info("Image features: computing %d images once, %.0f MB into %s", len(images), size / 1e6, path)
        features = torch.empty(len(images), tokens, width, dtype=dtype)
        for start in progress(range(0, len(images), batch_size), desc="image features"):
            chunk = images[start : start + batch_size]
            pixels = processor.image_processor([open_image(open_place(image)) for image in chunk], return_tensors="pt")
            features[start : start + len(chunk)] = model.core.encode_images(**pixels)["pooler_output"]
        directory.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file({"features": features}, partial)
            partial.replace(path)  # whole or not at all
        finally:
            partial.unlink(missing_ok=True)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("features")

"""Frozen features, computed once: what a frozen vision tower says of each image, kept on disk for every later epoch.

A cache file holds one tensor, the image tokens of a list of images. Its name is a fingerprint of all that they depend
on: the tower's weights and config, its preprocessing, the token choice, the dtype and every image's bytes. A change in
any of them names another file, so nothing stale is ever read.
"""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from .backbones import cache_dir
from .configuration_captioner import CaptionerConfig
from .console import progress
from .data import PictureOpener, Place
from .images import PIXELS_VERSION, ImageError
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerProcessor

logger = logging.getLogger(__name__)

# Settings of the composed model that decide which tokens are taken from the tower's output.
_TOKEN_SETTINGS = ("image_tokens", "image_grid", "pooled_in_front", "pooled_feature")

# Fields of a tower's config that saving or loading it changes.
_INCIDENTAL = ("_name_or_path", "architectures", "dtype")

# In a cache file's metadata: a JSON list of the rows whose images could not be opened.
_UNREADABLE = "unreadable"


def features_key(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    images: Sequence[str],
    dtype: torch.dtype,
    open_picture: PictureOpener | None = None,
    skip_unreadable: bool = False,
) -> str:
    """SHA-256 of everything that the features of `images` depend on, as hex.

    Raises:
        ImageError: if an image's file cannot be read, unless `skip_unreadable`.
    """
    open_picture = open_picture or PictureOpener()
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
        "pixels": [PIXELS_VERSION, open_picture.max_pixels, open_picture.max_bytes],
    }
    digest.update(json.dumps(settings, sort_keys=True, default=str).encode())
    for image in images:
        try:
            content = Place.parse(image).read(open_picture.max_bytes)
        except ImageError:
            if not skip_unreadable:
                raise
            content = b"unreadable"
        digest.update(hashlib.sha256(content).digest())
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
    open_picture: PictureOpener | None = None,
    on_error: Callable[[int, ImageError], None] | None = None,
) -> torch.Tensor:
    """The vision tower's tokens of each image, memory-mapped from the cache, computed first where they are not there.

    Args:
        model: its vision tower must be frozen.
        processor: the model's.
        images: paths or other places (`vlm_caption.data.Place`), as a dataset's column `image` has them.
        directory: the cache's folder; by default `features` in the package's cache.
        batch_size: images that go through the tower at once.
        dtype: of the stored features.
        open_picture: opens an image; by default within the limits of `open_image`.
        on_error: gets the row and the error of each image that cannot be opened, from the cache as well; its features
            are then zeros.

    Returns:
        `dtype` [len(images), N, D_vision], in the order of `images`.

    Raises:
        ImageError: if an image cannot be opened, and `on_error` is not given.
    """
    open_picture = open_picture or PictureOpener()
    directory = cache_dir() / "features" if directory is None else directory
    key = features_key(model, processor, images, dtype, open_picture, skip_unreadable=on_error is not None)
    path = directory / f"{key}.safetensors"
    errors = _read_errors(path, images, open_picture) if path.exists() else None
    if errors is not None:
        logger.info("Image features: %d images from %s", len(images), path)
    else:
        width = model.config.vision_feature_size
        tokens = model.config.image_seq_length - (model.config.image_start == "learned")
        size = len(images) * tokens * width * dtype.itemsize
        logger.info("Image features: computing %d images once, %.0f MB into %s", len(images), size / 1e6, path)
        features = torch.zeros(len(images), tokens, width, dtype=dtype)
        unreadable = []
        for start in progress(range(0, len(images), batch_size), desc="image features"):
            pictures = {}
            for row, image in enumerate(images[start : start + batch_size], start=start):
                try:
                    pictures[row] = open_picture(image)
                except ImageError as error:
                    if on_error is None:
                        raise
                    unreadable.append(row)
                    on_error(row, error)
            if pictures:
                pixels = processor.image_processor(list(pictures.values()), return_tensors="pt")
                features[list(pictures)] = model.core.encode_images(**pixels)["pooler_output"].to(features)
        directory.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.partial")
        try:
            save_file({"features": features}, partial, {_UNREADABLE: json.dumps(unreadable)})
            partial.replace(path)  # whole or not at all
        finally:
            partial.unlink(missing_ok=True)
    for row, error in (errors or {}).items():
        if on_error is None:
            raise error
        on_error(row, error)
    with safe_open(path, framework="pt") as file:
        return file.get_tensor("features")


def _read_errors(path: Path, images: Sequence[str], open_picture: PictureOpener) -> dict[int, ImageError] | None:
    """What is wrong with the images that had no features, by row; None if one of them can be opened by now."""
    with safe_open(path, framework="pt") as file:
        unreadable = json.loads((file.metadata() or {}).get(_UNREADABLE, "[]"))
    errors = {}
    for row in unreadable:
        try:
            open_picture(images[row])
        except ImageError as error:
            errors[row] = error
        else:  # a plug-in or a newer Pillow reads it
            return None
    return errors

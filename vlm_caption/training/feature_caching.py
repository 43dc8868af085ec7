"""The features of all pictures that a config names, computed ahead of training."""

import logging
from collections.abc import Callable, Sequence
from datetime import timedelta

import torch
from accelerate import PartialState
from transformers import set_seed

from ..config.run_config import RunConfig
from ..core.errors import ConfigError, ImageError
from ..core.interrupts import StopSignals
from ..data.bad_images import BadImages
from ..data.opening import bad_images, each_text, open_data, picture_opener
from ..features.cache import image_features
from ..towers.composition import NO_TOWER
from ..towers.precision import hold_frozen
from .model import compose_captioner

logger = logging.getLogger(__name__)

_LONGEST_WAIT = timedelta(hours=24)  # of one process for another


def cache_features(config: RunConfig) -> dict[str, int]:
    """Computes the image features of the config's train and dev split, where they are not in the cache.

    Started as several processes (`torchrun --nproc_per_node 2 scripts/cache_features.py …`), these share the work.

    Returns:
        how many images each split has.

    Raises:
        ConfigError: if settings do not go together.
        DataError, ImageError, BackboneError: if captions, pictures or towers cannot be had, or the cache not written.
        Interrupted: on SIGTERM and SIGINT; what was computed is kept.
    """
    if config.data.features is not None or config.model.vision == NO_TOWER:
        raise ConfigError("The config has no vision tower, so there is nothing to compute: train with it.")
    with StopSignals():
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
        set_seed(config.training.seed)  # of a tower with random weights, the one that training will have
        corpus = open_data(config.data)
        bad = bad_images(config.data)
        datasets = {
            split: corpus.load(split, config.data.limit, on_missing=None if bad is None else bad.add_missing)
            for split in dict.fromkeys((config.data.train_split, config.data.dev_split))
        }
        splits = {split: dataset["image"] for split, dataset in datasets.items()}
        if bad is not None:
            bad.expect(sum(map(len, splits.values())))
        open_picture = picture_opener(config.data)
        model, processor = compose_captioner(config, each_text(datasets[config.data.train_split], config.data.prompt))
        model.core.vision_tower.to(state.device)
        # The tower's dtype is a part of the setting.
        hold_frozen(model, config.training.precision, config.changed_towers)
        for split, images in splits.items():
            logger.info("%s: %d images", split, len(images))
            on_error = None if bad is None else _adder(bad, images)
            image_features(model, processor, images, open_picture=open_picture, on_error=on_error)
    return {split: len(images) for split, images in splits.items()}


def _adder(bad: BadImages, images: Sequence[str]) -> Callable[[int, ImageError], None]:
    return lambda row, error: bad.add(images[row], error.reason)

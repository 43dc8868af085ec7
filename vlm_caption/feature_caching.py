"""The features of all pictures that a config names, computed ahead of training."""

import logging
from datetime import timedelta

import torch
from accelerate import PartialState
from transformers import set_seed

from .features import image_features
from .interruption import StopSignals
from .run_config import RunConfig
from .training import compose_captioner, hold_frozen, open_data

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
    with StopSignals():
        state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
        set_seed(config.training.seed)  # of a tower with random weights, the one that training will have
        corpus = open_data(config.data)
        splits = {
            split: corpus.load(split, config.data.limit)["image"]
            for split in dict.fromkeys((config.data.train_split, config.data.dev_split))
        }
        model, processor = compose_captioner(config.model)
        model.core.vision_tower.to(state.device)
        hold_frozen(model, config.training.precision)  # the tower's dtype is a part of the setting
        for split, images in splits.items():
            logger.info("%s: %d images", split, len(images))
            image_features(model, processor, images)
    return {split: len(images) for split, images in splits.items()}

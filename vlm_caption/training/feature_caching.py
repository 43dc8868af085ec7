"""The features of all pictures that a config names, computed ahead of training."""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from transformers import set_seed

from ..config.run_config import RunConfig
from ..core.errors import ConfigError, ImageError
from ..core.interrupts import StopSignals
from ..data.bad_images import BadImages
from ..data.corpora import Corpora
from ..data.opening import bad_images, each_text, open_data, picture_opener
from ..features.cache import image_features
from ..towers.composition import NO_TOWER
from ..towers.precision import hold_frozen
from .data import count_replayed, load_replay
from .launch import join_processes
from .model import changed_towers, compose_captioner
from .parent import adopt_parent

logger = logging.getLogger(__name__)


def cache_features(config: RunConfig) -> dict[str, int]:
    """Computes the image features of the config's train and dev split that are not in the cache yet, and of the images
    that training would replay.

    Several processes (`torchrun --nproc_per_node 2 scripts/cache_features.py …`) share the work.

    Returns:
        The number of images of each split, and of those to "replay".

    Raises:
        ConfigError: Settings do not go together.
        DataError, ImageError, BackboneError: Captions, pictures or towers cannot be had, or the cache not written.
        Interrupted: SIGTERM or SIGINT arrived; what was computed is kept.
    """
    config = adopt_parent(config)
    if config.data.features is not None or config.model.vision == NO_TOWER:
        raise ConfigError("The config has no vision tower, so there is nothing to compute: train with it.")
    if not any(
        stage.cache_features and stage.module("vision").policy == "frozen" for stage in config.stage_settings()
    ):
        raise ConfigError(
            "Training would not read the features: the vision tower is trained, or training.cache_features is false."
        )
    with StopSignals() as signals:
        state = join_processes()
        set_seed(config.training.seed)  # a tower with random weights is then the one that training has
        corpus = open_data(config.data)
        bad = bad_images(config.data)
        datasets = {
            split: corpus.load(split, config.data.limit, on_missing=None if bad is None else bad.add_missing)
            for split in dict.fromkeys((config.data.train_split, config.data.dev_split))
        }
        splits = {split: dataset["image"] for split, dataset in datasets.items()}
        if bad is not None:
            bad.expect(sum(map(len, splits.values())))
        if config.data.replay is not None:
            train = datasets[config.data.train_split]
            names = corpus.names if isinstance(corpus, Corpora) else []
            drawn = count_replayed(config.data, train, names)
            splits["replay"] = load_replay(config, drawn, bad)["image"]
        open_picture = picture_opener(config.data)
        model, processor = compose_captioner(config, each_text(datasets[config.data.train_split], config.data.prompt))
        model.core.vision_tower.to(state.device)
        # The cache's key contains the tower's dtype.
        hold_frozen(model, config.training.precision, changed_towers(config, model))
        for split, images in splits.items():
            signals.raise_if_received()
            logger.info("%s: %d images", split, len(images))
            on_error = None if bad is None else _adder(bad, images)
            image_features(model, processor, images, open_picture=open_picture, on_error=on_error)
            if config.data.augment == "flip" and split != config.data.dev_split:
                logger.info("%s: %d images, mirrored", split, len(images))
                mirrored = dataclasses.replace(open_picture, flip=True)
                image_features(model, processor, images, open_picture=mirrored, on_error=on_error)
    return {split: len(images) for split, images in splits.items()}


def _adder(bad: BadImages, images: Sequence[str]) -> Callable[[int, ImageError], None]:
    return lambda row, error: bad.add(images[row], error.reason)

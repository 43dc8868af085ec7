"""The data of a run: its config's splits, the images as the model gets them, and the choice of captions."""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datasets import Dataset, concatenate_datasets

from ..config.run_config import RunConfig
from ..config.sections import DataSection, TrainingSection
from ..core.console import is_first_process
from ..core.errors import ConfigError, DataError
from ..data.bad_images import BAD_IMAGES_NAME, BadImages
from ..data.captions import CaptionChoice, TargetChoice
from ..data.collator import CaptionCollator
from ..data.corpora import CORPUS, Corpora, rows_of
from ..data.corpus import count_captions
from ..data.opening import bad_images, check_left, load_splits, open_data, open_features, picture_opener
from ..data.records import Problem
from ..data.sampler import Group
from ..features.flips import FlippedInputs, flip
from ..features.inputs import ImageInputs, with_index
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.processor import CaptionerProcessor

logger = logging.getLogger(__name__)

# How many times as many images are kept for replay as an epoch draws: each of them goes through the vision tower.
_POOL = 4

# Settings that describe the run's own corpus, and not the one to replay.
_OF_OWN_CORPUS = ("weights", "format", "images", "image_column", "caption_column", "question_column", "subset")

_ROWS_A_BATCH = 1000


class CaptionSplits:
    """The rows of a run's two splits, before any picture is opened.

    Attributes:
        train, dev: Rows to train on and to evaluate on, with `image` and `captions`, and `questions` if the prompt
            asks them.
        names: The names of the corpora, if there are several; `train` then has their rows one after the other.
        replay: Rows of another corpus that are mixed in, if the config names one; else None.
        bad: The bad images, if they are left out; else None.
        vectors: The vectors that are captioned instead of pictures, if there are any; `image` is then the name of one.
        cut_captions: How many captions of `train` are cut; see `count_cut`.

    Raises:
        ConfigError: The config names vectors and a vision tower, or neither; or questions that are not asked.
        DataError: Something is wrong with the corpus, or too many images are missing.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.vectors = open_features(config)
        self.cut_captions = 0
        corpus = open_data(config.data)
        self.names = corpus.names if isinstance(corpus, Corpora) else []
        # All processes find the same; one writes it down.
        path = Path(config.training.output_dir) / BAD_IMAGES_NAME if is_first_process() else None
        self.bad = bad_images(config.data, path)
        self.train, self.dev = load_splits(corpus, config.data, config.training.eval_images, self.bad)
        self.replay = None if config.data.replay is None else load_replay(config, self.replayed, self.bad)
        chosen = config.data.captions_per_image
        logger.info(
            "Data: %d images with %d captions to train on%s, %d images to watch the loss on",
            len(self.train),
            count_captions(self.train),
            "" if chosen == "all" else f" ({chosen} of each image's)",
            len(self.dev),
        )

    def groups(self, train: Dataset) -> list[Group]:
        """Returns how many images an epoch has of each corpus.

        Args:
            train: The rows of `train` whose images can be opened.
        """
        return _groups(self.config.data, train, self.names)

    @property
    def replayed(self) -> int:
        """The number of replayed images that an epoch is to have."""
        return count_replayed(self.config.data, self.train, self.names)

    def count_cut(self, processor: CaptionerProcessor) -> None:
        """Counts the captions to train on that are cut at `data.max_caption_tokens`, and says in the log how many."""
        longest = self.config.data.max_caption_tokens
        collator = CaptionCollator(processor, lambda rows: {}, max_caption_tokens=longest)
        rows = range(len(self.train))
        batches = (rows[start : start + _ROWS_A_BATCH] for start in rows[::_ROWS_A_BATCH])
        self.cut_captions = sum(collator.count_cut(list(self.train.select(batch))) for batch in batches)
        if self.cut_captions:
            logger.info(
                "%d of the %d captions to train on are cut at data.max_caption_tokens %d: their ends are not learned",
                self.cut_captions,
                count_captions(self.train),
                longest,
            )

    def describe(self) -> dict[str, Any]:
        """Returns what tells these rows from others: for each split the number of images and of captions, and a
        fingerprint of the images' names and the captions. The content of a picture's file does not count."""
        return {
            name: {
                "images": len(dataset),
                "captions": count_captions(dataset),
                "fingerprint": _fingerprint(dataset),
            }
            for name, dataset in (("train", self.train), ("dev", self.dev), ("replay", self.replay))
            if dataset is not None
        }


def count_replayed(settings: DataSection, train: Dataset, names: Sequence[str] = ()) -> int:
    """Returns the number of replayed images that an epoch is to have.

    Args:
        settings: The settings of the data.
        train: The rows to train on that are not replayed.
        names: The names of their corpora, if there are several.
    """
    if settings.replay is None:
        return 0
    share = settings.replay_share
    return round(share / (1 - share) * sum(group.drawn for group in _groups(settings, train, names)))


def load_replay(config: RunConfig, drawn: int, bad: BadImages | None = None) -> Dataset:
    """Loads the rows to replay: a random part of the other corpus, several times as many as an epoch draws.

    Args:
        config: The run's config.
        drawn: How many of them an epoch draws.
        bad: Gets the missing images.

    Raises:
        ConfigError: Vectors are captioned instead of images.
        DataError: Something is wrong with the other corpus.
    """
    data = config.data
    if data.features is not None:
        raise ConfigError("data.replay is for images, and data.features gives vectors: leave one of them out.")
    settings = dataclasses.replace(data, path=data.replay, replay=None, **dict.fromkeys(_OF_OWN_CORPUS))
    missing: list[Problem] = []
    try:
        corpus = open_data(settings)
        # A corpus whose training split is not called as this one's has the usual name.
        split = next((name for name in (data.train_split, "train") if name in corpus.splits), data.train_split)
        found = corpus.load(split, on_missing=None if bad is None else missing.append)
    except DataError as error:
        raise DataError(
            f"data.replay: {error} (data.format, images, columns and subset are those of data.path: a corpus that "
            "needs its own must first be saved in a form that needs none, as datasets' save_to_disk does)"
        ) from error
    found = found.remove_columns([CORPUS] if CORPUS in found.column_names else [])
    pool = found.shuffle(seed=config.training.seed).select(range(min(_POOL * drawn, len(found))))
    if bad is not None:
        # The share of bad images is one of all images that were looked for.
        bad.expect(len(found) + len(missing))
        for problem in missing:
            bad.add_missing(problem)
    logger.info("Replay: %d of the %d images of %s", len(pool), len(found), ", ".join(settings.paths))
    return pool


def _settle(bad: BadImages, config: RunConfig) -> None:
    """Closes the list of bad images, and says how many there are."""
    bad.settle()
    if bad.reasons:
        path = Path(config.training.output_dir) / BAD_IMAGES_NAME
        logger.info("Left out %d bad images: %s", len(bad.reasons), path)


def _groups(settings: DataSection, train: Dataset, names: Sequence[str]) -> list[Group]:
    """Returns how many images an epoch has of each corpus."""
    rows = rows_of(train)
    counts = [len(rows.get(name, ())) for name in names] or [len(train)]
    weights = settings.weights or [1.0] * len(counts)
    return [Group.of_weight(count, weight) for count, weight in zip(counts, weights, strict=True)]


@dataclass
class TrainingData:
    """A run's two splits as a model gets them.

    Attributes:
        train, dev: Rows whose images can be opened, with `image`, `captions` and `index`. Replayed rows are the last
            ones of `train`. With several corpora, rows also have `corpus`.
        collator, dev_collator: Make batches of the rows.
        choice: Which captions of an image are trained on.
        choose_targets: Which token of each is trained on; None: all.
        images: The images of the rows to train on, as they are.
        flips: The same images, some of them mirrored, of which batches are made; None: none is mirrored.
        groups: How many rows of `train` are of each corpus, and how many of them an epoch has; by default all.
        replay: The same of the replayed rows; None if nothing is replayed.
        names: The names of the corpora, if there are several.
        left_out: How many images are left out because they cannot be opened or are missing.
        cut_captions: How many of the captions to train on are cut.
    """

    train: Dataset
    dev: Dataset
    collator: CaptionCollator
    dev_collator: CaptionCollator
    choice: CaptionChoice
    choose_targets: TargetChoice | None = None
    images: ImageInputs | None = None
    flips: FlippedInputs | None = None
    groups: list[Group] = field(default_factory=list)
    replay: Group | None = None
    names: list[str] = field(default_factory=list)
    left_out: int = 0
    cut_captions: int = 0

    def __post_init__(self):
        if not self.groups:
            self.groups = [Group(len(self.train), len(self.train))]

    @property
    def own(self) -> Dataset:
        """The rows of `train` that are not for replay."""
        return self.train if self.replay is None else self.train.select(range(len(self.train) - self.replay.rows))

    @property
    def own_an_epoch(self) -> int:
        """How many images an epoch has that are not replayed."""
        return sum(group.drawn for group in self.groups)

    def describe_epoch(self) -> str:
        """Returns what a log line says of an epoch that does not have every image of one corpus once; else ""."""
        of_each = [f"{group.drawn} of {name}" for group, name in zip(self.groups, self.names, strict=False)]
        mixed = f" ({' and '.join(of_each)} an epoch)" if of_each else ""
        return mixed + ("" if self.replay is None else f" and on {self.replay.drawn} replayed images an epoch")


def prepare_data(
    splits: CaptionSplits,
    settings: TrainingSection,
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
) -> TrainingData:
    """Opens the images of a run's splits, or computes their features, and prepares their batches.

    Args:
        splits: The rows.
        settings: The settings of the run, or of the stage.
        model: The captioner, on its device, its parts frozen or not as they are to be trained.
        processor: The model's processor.

    Raises:
        DataError: Too many images are bad, or a vector holds a number that is not finite, or a single image is left to
            choose weights by its caption.
        ImageError: An image is bad, and bad images are not left out.
    """
    config, bad = splits.config, splits.bad
    tower = model.core.vision_tower
    is_frozen = tower is not None and not any(parameter.requires_grad for parameter in tower.parameters())
    options: dict[str, Any] = {
        "cache": settings.cache_features and is_frozen,
        "open_picture": picture_opener(config.data),
        "bad": bad,
        "vectors": splits.vectors,
    }
    rows = splits.train if splits.replay is None else concatenate_datasets([splits.train, splits.replay])
    images, dev_images = (ImageInputs(model, processor, dataset["image"], **options) for dataset in (rows, splits.dev))
    train, dev = images.keep(rows), dev_images.keep(splits.dev)
    _check_kept(config, settings, train, dev, bad)
    limits: dict[str, Any] = {
        "max_caption_tokens": config.data.max_caption_tokens,
        "positions": model.config.text_positions(),
    }
    pool = sum(row >= len(splits.train) for row in images.rows)
    choice = CaptionChoice(config.data.captions_per_image, settings.seed)
    flips = FlippedInputs(images, flip(images), settings.seed) if config.data.augment == "flip" else None
    choose_targets = TargetChoice(settings.seed) if settings.objective == "random_token" else None
    return TrainingData(
        train=with_index(train),
        dev=with_index(dev),
        collator=CaptionCollator(processor, flips or images, choose=choice, choose_targets=choose_targets, **limits),
        dev_collator=CaptionCollator(processor, dev_images, **limits),
        choice=choice,
        choose_targets=choose_targets,
        images=images,
        flips=flips,
        groups=splits.groups(train.select(range(len(train) - pool))),
        replay=None if splits.replay is None else Group(pool, min(splits.replayed, pool)),
        names=splits.names,
        left_out=0 if bad is None else len(bad.reasons),
        cut_captions=splits.cut_captions,
    )


def _check_kept(
    config: RunConfig, settings: TrainingSection, train: Dataset, dev: Dataset, bad: BadImages | None
) -> None:
    """Checks that enough images are left after the bad ones are taken out.

    Raises:
        DataError: Too many images are bad, a split is empty, or CIDEr would be measured on one image.
    """
    if bad is not None:
        _settle(bad, config)
        check_left(config.data, train, dev)
    if settings.eval_captions and len(dev) < 2:
        raise DataError(
            f"{', '.join(config.data.paths)}: a single image of the split {config.data.dev_split!r} is left, whose "
            "CIDEr is always 0: give it more images, or set training.eval_captions to 0."
        )


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    columns = [name for name in ("image", "captions", "questions") if name in dataset.column_names]
    for batch in dataset.select_columns(columns).iter(10_000):
        digest.update(json.dumps([batch[name] for name in columns]).encode())
    return f"sha256:{digest.hexdigest()}"

"""What a run trains on: its config's splits, the images as the model gets them, and the choice of captions."""

import hashlib
import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import Dataset

from .composition import NO_TOWER
from .console import is_first_process
from .data import (
    BAD_IMAGES_NAME,
    BadImages,
    CaptionChoice,
    Cleaning,
    Corpus,
    DataError,
    PictureOpener,
    TargetChoice,
    Vectors,
    count_captions,
    open_corpus,
    open_vectors,
)
from .data.collator import CaptionCollator
from .image_inputs import ImageInputs, with_index
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import QUESTION, CaptionerProcessor
from .run_config import ConfigError, DataSection, RunConfig, TrainingSection

logger = logging.getLogger(__name__)


def open_data(settings: DataSection) -> Corpus:
    """Opens the corpus that the settings describe.

    Raises:
        ConfigError: if they name a column of questions, and the prompt asks none.
        DataError: if it cannot be read.
    """
    if settings.question_column is not None and QUESTION not in settings.prompt:
        raise ConfigError(
            f"data.question_column is {settings.question_column!r}, and data.prompt asks no question: write "
            f"{QUESTION} in data.prompt, or leave out data.question_column."
        )
    return open_corpus(
        settings.path,
        settings.format,
        images=settings.images,
        image_column=settings.image_column,
        caption_column=settings.caption_column,
        subset=settings.subset,
        question_column=settings.question_column,
        questions=QUESTION in settings.prompt,
        features=settings.features,
        feature_column=settings.feature_column,
        cleaning=Cleaning(settings.final_stop, settings.lower_case, settings.min_words, settings.max_words),
        dev_share=settings.dev_share,
    )


def open_features(config: RunConfig) -> Vectors | None:
    """The vectors that the captions are of, where they are not of pictures.

    Raises:
        ConfigError: if the settings name vectors and a vision tower, or neither.
        DataError: if the vectors cannot be read.
    """
    if config.data.features is None:
        if config.model.vision == NO_TOWER:
            raise ConfigError("model.vision is none: name the file of vectors to caption in data.features.")
        return None
    if config.model.vision != NO_TOWER:
        raise ConfigError("data.features gives vectors, which no vision tower makes: set model.vision to none.")
    return open_vectors(config.data.features, config.data.feature_column)


def picture_opener(settings: DataSection) -> PictureOpener:
    """What opens the pictures, within the settings' limits."""
    return PictureOpener(settings.max_pixels, settings.max_bytes)


def bad_images(settings: DataSection, path: Path | None = None) -> BadImages | None:
    """What counts bad images, and writes them to `path`, where they are left out; None where one ends the run."""
    return BadImages(path, settings.max_bad_share) if settings.on_bad_image == "skip" else None


def load_splits(
    corpus: Corpus, settings: DataSection, eval_images: int, bad: BadImages | None = None
) -> tuple[Dataset, Dataset]:
    """The images to train on and those to watch the loss on, at most `eval_images`; missing ones go to `bad`.

    Raises:
        DataError: if something is wrong with the corpus, or too many images are bad.
    """
    on_missing = None if bad is None else bad.add_missing
    train_set = corpus.load(settings.train_split, settings.limit, on_missing=on_missing)
    dev_limit = min(eval_images, settings.limit or eval_images)
    dev_set = corpus.load(settings.dev_split, dev_limit, on_missing=on_missing)
    if bad is not None:
        bad.expect(len(train_set) + len(dev_set))
    return train_set, dev_set


def each_caption(dataset: Dataset) -> Iterator[str]:
    """All captions of a dataset with the column `captions`, one after the other."""
    for captions in dataset["captions"]:
        yield from captions


def each_question(dataset: Dataset) -> Iterator[str]:
    """All questions of a dataset, one after the other; none where the prompt asks none."""
    for questions in dataset["questions"] if "questions" in dataset.column_names else ():
        yield from questions


def each_text(dataset: Dataset, prompt: str) -> Iterator[str]:
    """All that a language model reads of a dataset: captions, questions, and the prompt around the image."""
    yield from each_caption(dataset)
    yield from each_question(dataset)
    if prompt:
        yield prompt.replace("<image>", "").replace(QUESTION, "") + " "  # which separates a caption from its prompt


def check_left(settings: DataSection, train_set: Dataset, dev_set: Dataset) -> None:
    """Sees that leaving out bad images has not emptied a split.

    Raises:
        DataError: if it has.
    """
    for split, dataset in ((settings.train_split, train_set), (settings.dev_split, dev_set)):
        if len(dataset) == 0:
            raise DataError(f"{settings.path}: none of the images of the split {split!r} that are read can be opened")


class CaptionSplits:
    """The rows of a run's two splits, before any picture is opened.

    Attributes:
        train, dev: rows to train on and to watch the loss on, with `image` and `captions`, and `questions` where the
            prompt asks them.
        bad: where bad images are left out, these; else None.
        vectors: what the captions are of, where that is no pictures; `image` is then the name of a row of them.

    Raises:
        ConfigError: if the config names vectors and a vision tower, or neither; or questions that are not asked.
        DataError: if something is wrong with the corpus, or too many images are missing.
    """

    def __init__(self, config: RunConfig):
        self.config = config
        self.vectors = open_features(config)
        corpus = open_data(config.data)
        # Of several processes, which all find the same, one writes it down.
        path = Path(config.training.output_dir) / BAD_IMAGES_NAME if is_first_process() else None
        self.bad = bad_images(config.data, path)
        self.train, self.dev = load_splits(corpus, config.data, config.training.eval_images, self.bad)
        chosen = config.data.captions_per_image
        logger.info(
            "Data: %d images with %d captions to train on%s, %d images to watch the loss on",
            len(self.train),
            count_captions(self.train),
            "" if chosen == "all" else f" ({chosen} of each image's)",
            len(self.dev),
        )

    def describe(self) -> dict[str, Any]:
        """What tells these rows from others: of each split the number of images and of captions, and a fingerprint of
        the images' names and the captions. What is in a picture's file does not count."""
        return {
            name: {
                "images": len(dataset),
                "captions": count_captions(dataset),
                "fingerprint": _fingerprint(dataset),
            }
            for name, dataset in (("train", self.train), ("dev", self.dev))
        }


class TrainingData:
    """A run's two splits as a model gets them.

    Args:
        splits: their rows.
        settings: of the training, or of the stage.
        model: on its device, its parts frozen or not as they are to be trained.
        processor: the model's.

    Attributes:
        train, dev: rows whose images can be opened, with `image`, `captions` and `index`.
        images: of the rows to train on.
        collator, dev_collator: make batches of the rows.
        choice: which captions of an image are trained on.
        choose_targets: which token of each; None: all.

    Raises:
        DataError: if too many images are bad, or a vector holds a number that is not finite, or a single image is
            left to choose weights by its caption.
        ImageError: if one is, and bad images are not left out.
    """

    def __init__(
        self,
        splits: CaptionSplits,
        settings: TrainingSection,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
    ):
        config, bad = splits.config, splits.bad
        tower = model.core.vision_tower
        is_frozen = tower is not None and not any(parameter.requires_grad for parameter in tower.parameters())
        options: dict[str, Any] = {
            "cache": settings.cache_features and is_frozen,
            "open_picture": picture_opener(config.data),
            "bad": bad,
            "vectors": splits.vectors,
        }
        self.images, dev_images = (
            ImageInputs(model, processor, dataset["image"], **options) for dataset in (splits.train, splits.dev)
        )
        train, dev = self.images.keep(splits.train), dev_images.keep(splits.dev)
        if bad is not None:
            bad.settle()
            if bad.reasons:
                path = Path(config.training.output_dir) / BAD_IMAGES_NAME
                logger.info("Left out %d bad images: %s", len(bad.reasons), path)
            check_left(config.data, train, dev)
        if settings.eval_captions and len(dev) < 2:
            raise DataError(
                f"{config.data.path}: a single image of the split {config.data.dev_split!r} is left, whose CIDEr is "
                "always 0: give it more images, or set training.eval_captions to 0."
            )
        self.train, self.dev = with_index(train), with_index(dev)
        options = {
            "max_caption_tokens": config.data.max_caption_tokens,
            "positions": model.config.text_positions,
        }
        self.choice = CaptionChoice(config.data.captions_per_image, settings.seed)
        self.choose_targets = TargetChoice(settings.seed) if settings.objective == "random_token" else None
        self.collator = CaptionCollator(
            processor, self.images, choose=self.choice, choose_targets=self.choose_targets, **options
        )
        self.dev_collator = CaptionCollator(processor, dev_images, **options)


def _fingerprint(dataset: Dataset) -> str:
    digest = hashlib.sha256()
    columns = [name for name in ("image", "captions", "questions") if name in dataset.column_names]
    for batch in dataset.select_columns(columns).iter(10_000):
        digest.update(json.dumps([batch[name] for name in columns]).encode())
    return f"sha256:{digest.hexdigest()}"

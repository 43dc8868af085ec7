"""Opens the corpus, the vectors and the pictures that a config describes."""

from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset

from ..config.run_config import RunConfig
from ..config.sections import DataSection
from ..core.errors import ConfigError, DataError
from ..model.processing_captioner import QUESTION
from ..towers.composition import NO_TOWER
from .bad_images import BadImages, PictureOpener
from .captions import Cleaning
from .corpora import Corpora, in_turn
from .corpus import Corpus
from .formats import open_corpus
from .vectors import Vectors, open_vectors

# Settings that describe one corpus, and cannot be those of several.
_OF_ONE_CORPUS = ("images", "subset", "features", "feature_column")


def open_data(settings: DataSection) -> Corpus | Corpora:
    """Opens the corpus that the settings describe, or several corpora as one.

    Raises:
        ConfigError: They name a column of questions, and the prompt asks none; or settings do not fit the number of
            corpora.
        DataError: A corpus cannot be read.
    """
    _check_corpora(settings)
    if len(settings.paths) == 1:
        return _open_one(settings, settings.paths[0])
    return Corpora([_open_one(settings, path) for path in settings.paths])


def _check_corpora(settings: DataSection) -> None:
    """Checks that the settings fit the number of corpora.

    Raises:
        ConfigError: They do not.
    """
    count = len(settings.paths)
    if settings.weights is not None and len(settings.weights) != count:
        raise ConfigError(
            f"data.weights has {len(settings.weights)} numbers, and data.path names {count} "
            f"{'corpus' if count == 1 else 'corpora'}: give one number for each."
        )
    for name in _OF_ONE_CORPUS:
        if count > 1 and getattr(settings, name) is not None:
            raise ConfigError(
                f"data.{name} is of one corpus, and data.path names {count}: leave it out, or bring that corpus into "
                "a form that needs no such setting."
            )


def _open_one(settings: DataSection, path: str) -> Corpus:
    if settings.question_column is not None and QUESTION not in settings.prompt:
        raise ConfigError(
            f"data.question_column is {settings.question_column!r}, and data.prompt asks no question: write "
            f"{QUESTION} in data.prompt, or leave out data.question_column."
        )
    return open_corpus(
        path,
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
        on_bad_record=settings.on_bad_record,
    )


def open_features(config: RunConfig) -> Vectors | None:
    """Opens the vectors that the captions are of, where they are not of pictures.

    Raises:
        ConfigError: The settings name vectors and a vision tower, or neither.
        DataError: The vectors cannot be read.
    """
    if config.data.features is None:
        if config.model.vision == NO_TOWER:
            raise ConfigError("model.vision is none: name the file of vectors to caption in data.features.")
        return None
    if config.data.augment is not None:
        raise ConfigError("data.augment is for images, and data.features gives vectors: leave one of them out.")
    if config.model.vision != NO_TOWER:
        raise ConfigError("data.features gives vectors, which no vision tower makes: set model.vision to none.")
    return open_vectors(config.data.features, config.data.feature_column)


def picture_opener(settings: DataSection) -> PictureOpener:
    """Returns what opens the pictures, within the settings' limits."""
    return PictureOpener(settings.max_pixels, settings.max_bytes)


def bad_images(settings: DataSection, path: Path | None = None) -> BadImages | None:
    """Returns what counts bad images and writes them to `path`; None if the first one ends the run."""
    return BadImages(path, settings.max_bad_share) if settings.on_bad_image == "skip" else None


def load_splits(
    corpus: Corpus | Corpora, settings: DataSection, eval_images: int, bad: BadImages | None = None
) -> tuple[Dataset, Dataset]:
    """Loads the images to train on and those to watch the loss on, at most `eval_images`; missing ones go to `bad`.

    Of several corpora, the images to watch the loss on come in turn.

    Raises:
        DataError: Something is wrong with the corpus, or too many images are bad.
    """
    on_missing = None if bad is None else bad.add_missing
    if isinstance(corpus, Corpora):
        corpus.require(settings.train_split)
    train_set = corpus.load(settings.train_split, settings.limit, on_missing=on_missing)
    dev_limit = min(eval_images, settings.limit or eval_images)
    dev_set = corpus.load(settings.dev_split, dev_limit, on_missing=on_missing)
    if bad is not None:
        bad.expect(len(train_set) + len(dev_set))
    return train_set, in_turn(dev_set)


def each_caption(dataset: Dataset) -> Iterator[str]:
    """Yields all captions of a dataset with the column `captions`."""
    for captions in dataset["captions"]:
        yield from captions


def each_question(dataset: Dataset) -> Iterator[str]:
    """Yields all questions of a dataset; none if the prompt asks none."""
    for questions in dataset["questions"] if "questions" in dataset.column_names else ():
        yield from questions


def each_text(dataset: Dataset, prompt: str) -> Iterator[str]:
    """Yields all that a language model reads: captions, questions, and the prompt around the image."""
    yield from each_caption(dataset)
    yield from each_question(dataset)
    if prompt:
        yield prompt.replace("<image>", "").replace(QUESTION, "") + " "  # which separates a caption from its prompt


def check_left(settings: DataSection, train_set: Dataset, dev_set: Dataset) -> None:
    """Checks that leaving out bad images has not emptied a split.

    Raises:
        DataError: It has.
    """
    for split, dataset in ((settings.train_split, train_set), (settings.dev_split, dev_set)):
        if len(dataset) == 0:
            raise DataError(
                f"{', '.join(settings.paths)}: none of the images of the split {split!r} that are read can be opened"
            )

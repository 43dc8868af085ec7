"""The inputs to caption that a config describes: the pictures of its corpus, or vectors, and questions about them."""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from ..config.sections import DataSection
from ..core.errors import ImageError
from ..data.opening import open_data
from ..data.places import Place, open_place
from ..data.vectors import open_vectors
from ..images.opening import ImageSource
from ..images.stored import StoredPicture

if TYPE_CHECKING:
    from ..data.vectors import Vectors


@dataclass(frozen=True)
class CorpusInputs:
    """What a corpus has to caption.

    Attributes:
        inputs: Pictures as `open_image` takes them, or vectors.
        questions: The questions about each, if the config's prompt asks any.
    """

    inputs: "list[ImageSource] | Vectors"
    questions: list[list[str]] = field(default_factory=list)


def open_corpus_inputs(data: DataSection, split: str | None, on_error: Callable[[ImageError], None]) -> CorpusInputs:
    """Opens the pictures of a corpus. Each occurs once, with all questions about it.

    Args:
        data: The section of a config that describes the corpus.
        split: The split whose pictures are captioned, or None for those of all splits.
        on_error: A function that gets the errors of pictures that are missing.

    Raises:
        ConfigError: The settings do not fit together.
        DataError: The corpus or the vectors cannot be read, or it has no such split.
    """
    corpus = open_data(data)
    questions: dict[str, dict[str, None]] = {}
    # A corpus without a single good record has no splits: loading one says what is wrong.
    for name in [split] if split is not None else corpus.splits or [data.train_split]:
        dataset = corpus.load(
            name, data.limit, on_missing=lambda problem: on_error(ImageError(problem.where, problem.reason))
        )
        asks = "questions" in dataset.column_names
        for rows in dataset.select_columns(["image", *(["questions"] if asks else [])]).iter(10_000):
            for number, image in enumerate(rows["image"]):
                own = questions.setdefault(image, {})
                own.update(dict.fromkeys(rows["questions"][number]) if asks else {})
    asked = [list(own) for own in questions.values()]
    asked = asked if any(asked) else []
    if data.features is not None:
        return CorpusInputs(open_vectors(data.features, data.feature_column).select(list(questions)), asked)
    return CorpusInputs([_source(image) for image in questions], asked)


def _source(image: str) -> ImageSource:
    """Returns what `open_image` takes for an entry of a dataset's column `image`."""
    place = Place.parse(image)
    if place.is_whole_file:
        return Path(place.path)
    return StoredPicture(place.described, partial(open_place, image))

"""Whether training would take a corpus, and with which settings it would."""

import dataclasses
from collections.abc import Iterator
from typing import Any

from ..config.sections import DataSection
from ..core.errors import DataError, ImageError
from ..data.corpora import Corpora
from ..data.corpus import Corpus, drop_rows
from ..data.opening import bad_images, check_left, load_splits


def find_refusals(
    corpus: Corpus | Corpora, settings: DataSection, eval_images: int, errors: dict[str, ImageError]
) -> tuple[list[str], dict[str, Any] | None]:
    """Returns all sentences with which training would refuse the data, and the settings with which it would take it.

    Args:
        corpus: The corpus.
        settings: The settings of training.
        eval_images: How many images of the dev split training uses.
        errors: The errors of the images that cannot be opened.
    """
    trial, refusals = settings, []
    refusal = _find_refusal(corpus, trial, eval_images, errors)
    for name, value in _remedies(corpus, settings):
        if refusal is None:
            break
        if refusal not in refusals:
            refusals.append(refusal)
        changed = dataclasses.replace(trial, **{name: value})
        tried = corpus.skipping_bad_records() if changed.on_bad_record == "skip" else corpus
        after = _find_refusal(tried, changed, eval_images, errors)
        if after != refusal:
            trial, refusal = changed, after
    if refusal is not None:
        return [*refusals, *([refusal] if refusal not in refusals else [])], None
    changes = {
        f"data.{item.name}": getattr(trial, item.name)
        for item in dataclasses.fields(trial)
        if getattr(trial, item.name) != getattr(settings, item.name)
    }
    return refusals, changes


def _remedies(corpus: Corpus | Corpora, settings: DataSection) -> Iterator[tuple[str, Any]]:
    """Yields settings that may each overcome a refusal, in the order in which training meets these."""
    if settings.on_bad_record == "error":
        yield "on_bad_record", "skip"
    others = [split for split in corpus.splits if split not in (settings.train_split, settings.dev_split)]
    if settings.train_split in corpus.splits:
        yield from (("dev_split", split) for split in others)
    else:
        yield from (("train_split", split) for split in others)
    if settings.on_bad_image == "error":
        yield "on_bad_image", "skip"
    yield from (
        ("max_bad_share", share / 100) for share in (10, 25, 50, 75, 99) if share / 100 > settings.max_bad_share
    )


def _find_refusal(
    corpus: Corpus | Corpora, settings: DataSection, eval_images: int, errors: dict[str, ImageError]
) -> str | None:
    """Returns the first error that training would meet; `errors` are those of images that cannot be opened."""
    bad = bad_images(settings)
    try:
        left = []
        for dataset in load_splits(corpus, settings, eval_images, bad):
            failed = [row for row, image in enumerate(dataset["image"]) if image in errors]
            for image in (dataset[row]["image"] for row in failed):
                if bad is None:
                    raise errors[image]
                bad.add(image, errors[image].reason)
            left.append(drop_rows(dataset, failed))
        check_left(settings, *left)
    except (DataError, ImageError) as error:
        return str(error)
    return None

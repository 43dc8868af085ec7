"""What is wrong with the pictures of a corpus: each is opened as in training."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..config.sections import DataSection
from ..core.console import progress
from ..core.errors import ImageError
from ..core.threads import map_in_threads
from ..data.corpus import drop_rows
from ..data.places import NamedBytes, Place
from ..data.records import Problem
from ..images.opening import IMAGE_SUFFIXES, open_image
from .result import LONG_SIDES, SMALL_SIDE, Finding
from .tally import Tally, hash_bytes


@dataclass
class Pictures:
    """What opening all pictures has shown.

    Attributes:
        readable: The images of each split that can be opened.
        errors: Why the others cannot be opened, by entry of the column `image`.
        unreadable, small, elongated: See `Inspection`.
    """

    readable: dict[str, Dataset] = field(default_factory=dict)
    errors: dict[str, ImageError] = field(default_factory=dict)
    unreadable: list[Finding] = field(default_factory=list)
    small: list[Finding] = field(default_factory=list)
    elongated: list[Finding] = field(default_factory=list)

    @classmethod
    def open_all(cls, datasets: dict[str, Dataset], tallies: dict[str, Tally], settings: DataSection) -> "Pictures":
        """Opens the pictures of all splits, and adds their sizes to the tallies."""
        pictures = cls()
        for split, dataset in datasets.items():
            failed, small, elongated = _open_pictures(split, dataset, tallies[split], settings)
            pictures.small += small
            pictures.elongated += elongated
            for row, error in failed.items():
                image = dataset[row]["image"]
                pictures.errors[image] = error
                pictures.unreadable.append(Finding(split, Place.parse(image).described, error.reason))
            pictures.readable[split] = drop_rows(dataset, list(failed))
        return pictures


def _open_pictures(
    split: str, dataset: Dataset, tally: Tally, settings: DataSection
) -> tuple[dict[int, ImageError], list[Finding], list[Finding]]:
    """Opens the pictures of a split. Returns the errors by row, and the images that are small and elongated."""
    images = dataset["image"]
    looks = map_in_threads(lambda image: _look(image, settings.max_pixels, settings.max_bytes), images)
    errors: dict[int, ImageError] = {}
    small, elongated = [], []
    for row, look in enumerate(progress(looks, total=len(dataset), desc=f"images of {split}")):
        if isinstance(look, ImageError):
            errors[row] = look
            continue
        tally.digests[row], width, height = look
        tally.sizes[row] = width, height
        finding = Finding(split, Place.parse(images[row]).described, f"{width} x {height} pixels")
        if min(width, height) < SMALL_SIDE:
            small.append(finding)
        if max(width, height) > LONG_SIDES * min(width, height):
            elongated.append(finding)
    return errors, small, elongated


def _look(image: str, max_pixels: int, max_bytes: int) -> tuple[int, int, int] | ImageError:
    """Reads a picture once and opens it as in training. Returns a hash of its bytes, its width and its height."""
    place = Place.parse(image)
    try:
        content = place.read(max_bytes)
        width, height = open_image(NamedBytes(content, place.described), max_pixels, max_bytes).size
    except ImageError as error:
        return error.detached()
    return hash_bytes(content), width, height


def find_copies(datasets: dict[str, Dataset], tallies: dict[str, Tally]) -> list[list[tuple[str, str]]]:
    """Returns the groups of pictures that are copies of each other, byte for byte; each a list of split and file."""
    digests = np.concatenate([tally.digests for tally in tallies.values()])
    rows = [(split, row) for split, dataset in datasets.items() for row in range(len(dataset))]
    opened = np.concatenate([tally.sizes[:, 0] > 0 for tally in tallies.values()])
    values, counts = np.unique(digests[opened], return_counts=True)
    groups: dict[int, list[tuple[str, str]]] = {}
    for index in np.flatnonzero(opened & np.isin(digests, values[counts > 1])):
        split, row = rows[index]
        file = Place.parse(datasets[split][row]["image"]).described
        groups.setdefault(int(digests[index]), []).append((split, file))
    return list(groups.values())


def find_unmentioned(datasets: dict[str, Dataset], problems: list[Problem]) -> list[str]:
    """Returns the pictures beside those of the corpus that no record is about."""
    images = [image for dataset in datasets.values() for image in dataset["image"]]
    images += [problem.image for problem in problems if problem.image]
    places = [place for place in map(Place.parse, images) if place.is_whole_file]
    mentioned = {Path(place.path) for place in places}
    found = []
    for folder in sorted({path.parent for path in mentioned}):
        if folder.is_dir():
            pictures = (path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
            found += sorted(str(path) for path in pictures if path not in mentioned and path.name[0] != ".")
    return found


def find_same_names(datasets: dict[str, Dataset]) -> list[list[str]]:
    """Returns the groups of pictures whose names differ only by case."""
    groups: dict[str, list[str]] = {}
    for dataset in datasets.values():
        for image in dataset["image"]:
            file = Place.parse(image).described
            groups.setdefault(file.casefold(), []).append(file)
    return [sorted(files) for files in groups.values() if len(set(files)) > 1]

"""A folder of pictures with their captions beside them, `NAME.txt` beside `NAME.jpg`, as trainers of image generators
take them.
"""

import os
from collections.abc import Iterator
from pathlib import Path

from ...core.errors import DataError
from ...core.text import read_lines
from ...images.opening import IMAGE_SUFFIXES
from ..records import ImageFolder, Problem, Record, Source, find_split, settle_names


def find_text_files(path: Path) -> list[Path]:
    """A caption beside a picture, somewhere in the folder."""
    return next(([text] for _, text in _walk(path) if text is not None), []) if path.is_dir() else []


def list_text_files(source: Source) -> Iterator[Path]:
    """Every picture and every caption."""
    for image, text in _walk(source.path):
        yield image
        if text is not None:
            yield text


def read_text_files(source: Source) -> Iterator[Record | Problem]:
    """Yield every picture below the folder, in sorted order, with its captions: one in each line that is not empty.

    The subfolders `train`, `val`, … are splits, if all pictures are in such ones, and in several.

    Raises:
        DataError: A folder cannot be listed, or a caption is not UTF-8.
    """
    folder = ImageFolder(source, [source.path])
    tops = list(dict.fromkeys(_top(source.path, image) for image, _ in _walk(source.path)))
    splits = dict(zip(tops, settle_names([find_split(top) for top in tops]), strict=True))
    for image, text in _walk(source.path):
        split = splits[_top(source.path, image)]
        if text is None:
            reason = f"there is no caption beside it, {image.with_suffix('.txt').name}"
            yield Problem(str(image), reason, str(image), split)
            continue
        captions = [line for _, _, _, line in read_lines(text) if line.strip()]
        if captions:
            yield folder.record(image.relative_to(source.path).as_posix(), captions, str(text), split)
        else:
            yield Problem(str(text), "the caption is empty", str(image), split)


def _walk(path: Path) -> Iterator[tuple[Path, Path | None]]:
    """Yield each picture and the text beside it."""

    def fail(error: OSError) -> None:
        raise DataError(f"{path}: the folder cannot be listed ({error})") from error

    for parent, folders, files in os.walk(path, onerror=fail):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        names = set(files)
        for name in sorted(files):
            image = Path(parent, name)
            if image.suffix.lower() in IMAGE_SUFFIXES and not name.startswith("."):
                text = image.with_suffix(".txt")
                yield image, text if text.name in names else None


def _top(root: Path, image: Path) -> str:
    """The folder in the root that an image is below; "" for the root itself."""
    *folders, _ = image.relative_to(root).parts
    return folders[0] if folders else ""

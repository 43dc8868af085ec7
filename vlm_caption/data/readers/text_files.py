"""A folder of pictures with their captions beside them, `NAME.txt` beside `NAME.jpg`, as trainers of image generators
take them.
"""

import logging
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

from ...core.errors import DataError
from ...core.files import is_folder
from ...core.text import read_text
from ...images.finding import SYSTEM_FOLDERS
from ...images.opening import IMAGE_SUFFIXES
from ..records import ImageFolder, Problem, Record, Source, find_split, settle_names

logger = logging.getLogger(__name__)

_CAPTION_SUFFIXES = (".txt", ".caption")

# A lone carriage return ends a line in files of an old Mac.
_LINE_END = re.compile(r"\r\n?|\n")


def find_text_files(path: Path) -> list[Path]:
    """Returns a caption beside a picture, somewhere in the folder."""
    if not is_folder(path):
        return []
    walk = _walk(path, on_error=lambda error: None)
    return next(([text] for _, text in walk if text is not None), [])


def list_text_files(source: Source) -> Iterator[Path]:
    """Yields every picture and every caption."""
    for image, text in _walk(source.path):
        yield image
        if text is not None:
            yield text


def shared_texts(path: Path) -> Iterator[tuple[Path, list[Path]]]:
    """Yields the texts that are the caption of several pictures, such as those of `NAME.jpg` and `NAME.png`."""
    pictures: dict[Path, list[Path]] = {}
    for image, text in _walk(path):
        if text is not None:
            pictures.setdefault(text, []).append(image)
    for text, images in pictures.items():
        if len(images) > 1:
            yield text, images


def read_text_files(source: Source) -> Iterator[Record | Problem]:
    """Yields every picture below the folder, in sorted order, with its captions: one in each line that is not empty.

    The caption of `NAME.jpg` is in `NAME.txt`, `NAME.caption`, `NAME.jpg.txt` or `NAME.jpg.caption`, in any case.
    The subfolders `train`, `val`, … are splits, if all pictures are in such ones, and in several.

    Raises:
        DataError: A folder cannot be listed.
    """
    folder = ImageFolder(source, [source.path])
    tops = list(dict.fromkeys(_top(source.path, image) for image, _ in _walk(source.path)))
    splits = dict(zip(tops, settle_names([find_split(top) for top in tops]), strict=True))
    for image, text in _walk(source.path, report=True):
        split = splits[_top(source.path, image)]
        if text is None:
            reason = f"there is no caption beside it, {image.with_suffix('.txt').name}"
            yield Problem(str(image), reason, str(image), split)
            continue
        try:
            captions = [line for line in _LINE_END.split(read_text(text)) if line.strip()]
        except DataError as error:
            yield Problem(str(text), str(error).removeprefix(f"{text}: "), str(image), split)
            continue
        if captions:
            yield folder.record(image.relative_to(source.path).as_posix(), captions, str(text), split)
        else:
            yield Problem(str(text), "the caption is empty", str(image), split)


def _walk(
    path: Path, on_error: Callable[[OSError], None] | None = None, report: bool = False
) -> Iterator[tuple[Path, Path | None]]:
    """Yields each picture and the text beside it.

    Args:
        path: The folder.
        on_error: Gets the error of a folder that cannot be listed; by default it is raised.
        report: Whether to say in the log what is passed over.

    Raises:
        DataError: A folder cannot be listed.
    """

    def fail(error: OSError) -> None:
        raise DataError(
            f"{error.filename}: the folder cannot be listed ({error.strerror or error}): open it, or move it away"
        ) from error

    links = lonely = 0
    for parent, folders, files in os.walk(path, onerror=on_error or fail):
        visible = sorted(name for name in folders if not name.startswith(".") and name not in SYSTEM_FOLDERS)
        folders[:] = visible
        links += sum(Path(parent, name).is_symlink() for name in visible)
        texts = {name.lower(): name for name in files if name.lower().endswith(_CAPTION_SUFFIXES)}
        for name in sorted(files):
            image = Path(parent, name)
            if image.suffix.lower() not in IMAGE_SUFFIXES or name.startswith("."):
                continue
            stems = [image.stem, name]
            exact = (f"{stem}{suffix}" for stem in stems for suffix in _CAPTION_SUFFIXES)
            text = next((texts[found] for wanted in exact if (found := wanted.lower()) in texts), None)
            yield image, None if text is None else Path(parent, text)
        lonely += _count_lonely(texts, files)
    if report and links:
        logger.warning("%s: passed over %d linked folders: give the folder that they lead to", path, links)
    if report and lonely:
        logger.info("%s: passed over %d texts without a picture beside them", path, lonely)


def _count_lonely(texts: dict[str, str], files: list[str]) -> int:
    """Counts the texts without a picture."""
    pictures = {file.lower() for file in files if Path(file).suffix.lower() in IMAGE_SUFFIXES}
    named = pictures | {Path(picture).stem for picture in pictures}
    return sum(Path(text).stem not in named for text in texts)


def _top(root: Path, image: Path) -> str:
    """Returns the folder in the root that an image is below; "" for the root itself."""
    *folders, _ = image.relative_to(root).parts
    return folders[0] if folders else ""

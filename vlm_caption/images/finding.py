"""Finds the pictures in folders."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path

from ..core.errors import ImageError, ImageNotFoundError
from .opening import IMAGE_SUFFIXES, _scheme, describe


def find_images(
    paths: Iterable[str | os.PathLike], on_error: Callable[[ImageError], None] | None = None
) -> list[Path | str]:
    """List the pictures named by files, folders and URLs, each once.

    A folder stands for the files below it that end like a picture (`IMAGE_SUFFIXES`), in sorted order and without
    hidden ones. A file is kept whatever its ending, and a path that does not exist too: opening it reports it. A URL
    is kept as it is, a string.

    Args:
        paths: Files, folders and URLs.
        on_error: Gets the error of each folder without pictures; by default the first one is raised.

    Raises:
        ImageNotFoundError: A folder holds no pictures.
        ImageError: A folder cannot be listed.
    """
    found: dict[str, Path | str] = {}
    for given in paths:
        name = os.fsdecode(given)
        if _scheme(name):
            found.setdefault(name, name)
            continue
        path = Path(given)
        try:
            images = _walk(path, describe(given)) if path.is_dir() else [path]
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        for image in images:
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100 - one name for a file, links kept
    return list(found.values())


def _walk(folder: Path, name: str) -> list[Path]:
    def fail(error: OSError) -> None:
        raise ImageError(name, f"cannot be listed ({error})") from error

    images = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [child for child in folders if not child.startswith(".")]
        images += [
            Path(parent, file)
            for file in files
            if not file.startswith(".") and Path(file).suffix.lower() in IMAGE_SUFFIXES
        ]
    if not images:
        raise ImageNotFoundError(name, f"the folder holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})")
    return sorted(images)

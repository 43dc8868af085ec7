"""Finds the pictures in folders."""

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import ImageError, ImageNotFoundError
from ..core.files import is_folder, open_regular
from .opening import IMAGE_SUFFIXES, describe, url_scheme

# What JPEG, PNG, GIF, TIFF and WebP files begin with, and HEIC and AVIF files have behind the first four bytes.
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF8", b"II*\0", b"MM\0*")
_CONTAINERS = (b"ftypavif", b"ftypheic", b"ftypheix", b"ftypmif1")

# Folders that the system makes and that nobody else may look into.
SYSTEM_FOLDERS = frozenset({"lost+found", "System Volume Information", "$RECYCLE.BIN"})


@dataclass
class PassedOver:
    """Counts what a search in folders left out.

    Attributes:
        links: Linked folders, which are not followed.
        closed: Folders that may not be listed.
        unnamed: Files that are pictures by their content and not by their name.
    """

    links: int = 0
    closed: int = 0
    unnamed: int = 0

    def __str__(self) -> str:
        """Returns the counts in one line, or nothing if all are 0."""
        counts = [
            f"{count:,} {what}"
            for count, what in (
                (self.links, "linked folders (give the folders that they lead to)"),
                (self.closed, "folders that may not be listed (open them)"),
                (self.unnamed, "pictures whose names do not end like one (rename them)"),
            )
            if count
        ]
        return f"passed over {', '.join(counts)}" if counts else ""


def find_images(
    paths: Iterable[str | os.PathLike],
    on_error: Callable[[ImageError], None] | None = None,
    passed_over: PassedOver | None = None,
) -> list[Path | str]:
    """Lists the pictures named by files, folders and URLs, each once.

    A folder stands for the files below it that end like a picture (`IMAGE_SUFFIXES`), in sorted order and without
    hidden ones. A file is kept whatever its ending, and so is a path that does not exist: opening it reports it. A URL
    is kept as it is, a string.

    Args:
        paths: Files, folders and URLs.
        on_error: Gets the error of each folder that has no pictures or cannot be listed; by default the first one is
            raised.
        passed_over: Gets the counts of what is left out below the folders. A folder that cannot be listed, below one
            that can, is among them and is no error.

    Raises:
        ImageNotFoundError: A folder holds no pictures.
        ImageError: A folder cannot be listed.
    """
    found: dict[str, Path | str] = {}
    for given in paths:
        name = os.fsdecode(given)
        if url_scheme(name):
            found.setdefault(name, name)
            continue
        path = Path(given)
        try:
            images = _walk(path, describe(given), passed_over) if is_folder(path) else [path]
        except ImageError as error:
            if on_error is None:
                raise
            on_error(error)
            continue
        for image in images:
            found.setdefault(os.path.abspath(image), image)  # noqa: PTH100 - one name for a file, links kept
    return list(found.values())


def _walk(folder: Path, name: str, passed_over: PassedOver | None) -> list[Path]:
    counts = passed_over or PassedOver()

    def fail(error: OSError) -> None:
        if error.filename is None or Path(error.filename) == folder:
            raise ImageError(name, f"cannot be listed ({error})") from error
        counts.closed += 1

    images: list[Path] = []
    for parent, folders, files in os.walk(folder, onerror=fail):
        folders[:] = [child for child in folders if not child.startswith(".") and child not in SYSTEM_FOLDERS]
        counts.links += sum(Path(parent, child).is_symlink() for child in folders)
        for file in files:
            if file.startswith("."):
                continue
            path = Path(parent, file)
            if path.suffix.lower() in IMAGE_SUFFIXES:
                images.append(path)
            elif passed_over is not None:
                counts.unnamed += _looks_like_picture(path)
    if not images:
        reason = f"the folder holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})"
        raise ImageNotFoundError(name, f"{reason}; {counts}" if str(counts) else reason)
    return sorted(images)


def _looks_like_picture(path: Path) -> bool:
    """Whether a file begins like a picture."""
    try:
        with open_regular(path) as file:
            head = file.read(12)
    except OSError:
        return False
    is_webp = head[:4] == b"RIFF" and head[8:] == b"WEBP"
    return head.startswith(_SIGNATURES) or head[4:].startswith(_CONTAINERS) or is_webp

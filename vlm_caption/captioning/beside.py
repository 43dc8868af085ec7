"""Writes captions to where each picture is: to a text file beside it, or into its metadata."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.errors import DataError, ImageError
from ..core.files import exists, open_regular, remove_partials, write_bytes, write_text
from ..core.text import readable
from ..images.description import read_description, with_description
from ..images.limits import MAX_BYTES
from .writers import Writer

if TYPE_CHECKING:
    from .captioner import Caption


@dataclass(frozen=True)
class Wording:
    """What is written of a caption, and what becomes of a text that is there already. By default it is kept.

    Attributes:
        prefix: A text before each caption.
        suffix: A text after each caption.
        append: Whether to add captions to the text, on lines of their own.
        overwrite: Whether to replace the text.
    """

    prefix: str = ""
    suffix: str = ""
    append: bool = False
    overwrite: bool = False

    def add(self, before: str | None, captions: Sequence[str]) -> str:
        """Returns the text with captions, each in a line.

        Args:
            before: The text that is there.
            captions: The captions of a picture.
        """
        lines = [before.removesuffix("\n")] if before and self.append else []
        return "\n".join([*lines, *(f"{self.prefix}{caption}{self.suffix}" for caption in captions)])


class _BesidePictures(Writer, ABC):
    """A writer of one text for each picture.

    Args:
        wording: What is written.
    """

    needs_checkpoint = False

    def __init__(self, wording: Wording | None = None) -> None:
        self.wording = wording or Wording()
        self.resumes = not (self.wording.append or self.wording.overwrite)

    def has(self, name: str) -> bool:
        return self.resumes and self._is_there(name)

    def add(self, captions: "Sequence[Caption]") -> list[ImageError]:
        texts: dict[str, list[str]] = {}
        errors = []
        for caption in captions:
            texts.setdefault(caption.image, []).append(caption.text)
        for name, lines in texts.items():
            try:
                self._write(name, self.wording.add(self._read(name) if self.wording.append else None, lines))
            except ValueError as error:
                errors.append(ImageError(name, str(error)))
            except OSError as error:
                reason = error.strerror or error
                raise DataError(f"{self._target(name)}: the caption cannot be written ({reason})") from error
        return errors

    def unusable(self, names: Sequence[str]) -> dict[str, ImageError]:
        """Returns the errors of the pictures that no caption can be written for, by name."""
        errors: dict[str, ImageError] = {}
        owners: dict[Path, str] = {}
        for name in names:
            if not exists(name):
                reason = "there is no file on this computer to write a caption beside"
            else:
                path = Path(os.path.abspath(self._target(name)))  # noqa: PTH100 - links are kept
                reason = self._find_fault(path, owners.setdefault(path, name), name)
            if reason is not None:
                errors[name] = ImageError(name, reason)
        return errors

    def remove_leftovers(self, names: Sequence[str]) -> None:
        """Removes what a killed job has left beside the pictures of these names."""
        remove_partials(map(self._target, names))

    @abstractmethod
    def _target(self, name: str) -> Path:
        """Returns the file that holds the text of a picture."""

    @abstractmethod
    def _find_fault(self, path: Path, owner: str, name: str) -> str | None:
        """Returns why the text of a picture cannot be written to a file, if it cannot.

        Args:
            path: The file.
            owner: The first picture whose text goes there.
            name: The picture.
        """

    @abstractmethod
    def _is_there(self, name: str) -> bool:
        """Returns whether a picture has a text."""

    @abstractmethod
    def _read(self, name: str) -> str | None:
        """Returns the text of a picture, or None if there is none.

        Raises:
            OSError: It cannot be read.
            ValueError: The picture has no place for it.
        """

    @abstractmethod
    def _write(self, name: str, text: str) -> None:
        """Replaces the text of a picture; see `_read`."""


class Sidecars(_BesidePictures):
    """Writes NAME.txt beside each picture. See [`Wording`] for what becomes of a file that is there."""

    def _target(self, name: str) -> Path:
        return Path(name).with_suffix(".txt")

    def _find_fault(self, path: Path, owner: str, name: str) -> str | None:
        if not os.access(path.parent, os.W_OK):
            return f"{readable(path.name)} cannot be written beside it: the folder is read-only"
        if owner != name:
            return f"{readable(path.name)} is for the caption of {readable(owner)}: rename one of the two"
        return None

    def _is_there(self, name: str) -> bool:
        return exists(self._target(name))

    def _read(self, name: str) -> str | None:
        path = self._target(name)
        return path.read_text(encoding="utf-8", errors="surrogateescape") if exists(path) else None

    def _write(self, name: str, text: str) -> None:
        write_text(self._target(name), text + "\n", errors="surrogateescape")


class Descriptions(_BesidePictures):
    """Writes captions into the pictures' own metadata, as XMP's `dc:description`; see `images/description.py`.

    A picture's file is replaced as a whole, with the permissions that it had.
    """

    def _target(self, name: str) -> Path:
        return Path(name).resolve()  # a link stays a link

    def _find_fault(self, path: Path, owner: str, name: str) -> str | None:
        if not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
            return "its caption cannot be written into it: the file or its folder is read-only"
        try:
            self._read(name)
        except ValueError as error:
            return str(error)
        except OSError:
            return None  # what opens it says why
        return None

    def _is_there(self, name: str) -> bool:
        try:
            return bool(self._read(name))
        except (OSError, ValueError):
            return False

    def _read(self, name: str) -> str | None:
        return read_description(_content(self._target(name)))

    def _write(self, name: str, text: str) -> None:
        path = self._target(name)
        write_bytes(path, with_description(_content(path), text), mode=path.stat().st_mode)


def _content(path: Path) -> bytes:
    with open_regular(path) as file:
        content = file.read(MAX_BYTES + 1)
    if len(content) > MAX_BYTES:
        raise ValueError(f"its file has more than {MAX_BYTES:,} bytes, and no caption is written into it")
    return content

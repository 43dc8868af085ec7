"""Captions kept as they are written: a job of many pictures that was stopped goes on where it was."""

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Self

from ..core.errors import DataError
from ..core.untrusted import load_json
from .captioner import Caption

# How `as_line` begins.
_START = b'{"image": "'


class CaptionFile:
    """A file of JSON lines with `image`, `caption` and `score`, which captions are added to.

        with CaptionFile("captions.jsonl") as file:
            left = [picture for picture in pictures if str(picture) not in file.done]
            for result in captioner.caption_each(left):
                if not isinstance(result, ImageError):
                    file.add(result)

    A caption is on its way to the disk when `add` returns. A last line that a kill cut short is taken out.

    Args:
        path: the file; it is made if there is none.

    Attributes:
        done: the pictures, or rows of vectors, that have a caption there, as `Caption.image` names them.

    Raises:
        DataError: if the file holds something else, or cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        self.done: set[str] = set()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("a+b")
            self._file.seek(0)
            whole = 0
            for number, line in enumerate(self._file, 1):
                if not line.endswith(b"\n"):  # cut short by a kill, or no such file
                    if not line.startswith(_START[: len(line)]):
                        raise self._other(number)
                    break
                self.done.add(self._image_of(line, number))
                whole += len(line)
            self._file.truncate(whole)
        except OSError as error:
            raise self._unusable(error) from error

    def add(self, caption: Caption) -> None:
        """Writes a caption down.

        Raises:
            DataError: if it cannot be written.
        """
        try:
            self._file.write(as_line(caption).encode())
            self._file.flush()
        except OSError as error:
            raise self._unusable(error) from error
        self.done.add(caption.image)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._file.close()

    def _image_of(self, line: bytes, number: int) -> str:
        try:
            entry = load_json(line, str(self.path))
            if isinstance(entry["caption"], str) and isinstance(entry["image"], str):
                return entry["image"]
        except (ValueError, KeyError, TypeError):
            pass
        raise self._other(number)

    def _other(self, number: int) -> DataError:
        return DataError(f"{self.path}: line {number} is no caption with its image: name another file for captions.")

    def _unusable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: captions cannot be kept there ({error.strerror or error}).")


def as_line(caption: Caption) -> str:
    """A caption as a line of JSON, in ASCII: a file's name may hold bytes that are no text."""
    entry = {"image": caption.image, "caption": caption.text, "score": round(caption.score, 4)}
    return json.dumps(entry) + "\n"

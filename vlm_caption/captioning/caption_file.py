"""Keeps captions in a file as they are written, so that a stopped job resumes where it was."""

import contextlib
import json
import os
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from filelock import FileLock, Timeout

from ..core.errors import DataError
from .columns import ALL_COLUMNS, as_entry

if TYPE_CHECKING:
    from .captioner import Caption

# How a line begins, and what follows its image.
_START, _NEXT = b'{"image": "', b', "caption": "'
_IMAGE = re.compile(rb'\{"image": "(?:[^"\\]|\\.)*(?:"(?P<rest>.*)|\\)?', re.DOTALL)

_LONGEST_LINE = 1 << 24


class CaptionFile:
    """A file of JSON lines, one for each caption, which captions are added to.

        with CaptionFile("captions.jsonl") as file:
            left = [picture for picture in pictures if str(picture) not in file.done]
            for result in captioner.caption_each(left):
                if not isinstance(result, ImageError):
                    file.add(result)

    The operating system has a caption when `add` returns. Captions that are added together are written together. A
    last line that a kill cut short is removed. Only one process at a time can open the file.

    Args:
        path: The file. It is created if it does not exist.
        settings: The settings that the captions depend on. They are written to the first line, and a file with other
            settings or other content is started afresh. Without settings, a file with other content is refused.

    Attributes:
        entries: The captions in the file, in order, as the objects of its lines.
        done: The pictures, or rows of vectors, that have a caption in the file, as the file names them.
        settings_before: The settings that the file had, or None.

    Raises:
        DataError: The file holds something else, is in use by another process, or cannot be read or written.
    """

    def __init__(self, path: str | os.PathLike, settings: Mapping[str, Any] | None = None) -> None:
        self.path = Path(path)
        self.entries: list[dict[str, Any]] = []
        self.settings_before: dict[str, Any] | None = None
        self._head = b"" if settings is None else _as_bytes({"settings": settings})
        self._ends = [len(self._head)]  # where the entries' lines end, in bytes, behind the end of the first line
        try:
            if self.path.exists() and not self.path.is_file():
                raise DataError(f"{self.path}: captions cannot be kept there (it is no regular file).")
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._acquire()
            try:
                size, addition = self._read(settings)
                self._file = self.path.open("ab", buffering=0)
                self._file.truncate(size)
                self._write(addition)
            except BaseException:
                self._unlock()
                raise
        except OSError as error:
            raise self._unusable(error) from error

    @property
    def done(self) -> set[str]:
        return {entry["image"] for entry in self.entries}

    def add(self, *captions: "Caption") -> None:
        """Writes captions, all or none of them.

        Raises:
            DataError: The captions cannot be written. The file is unchanged.
        """
        self.add_entries(map(as_entry, captions))

    def add_entries(self, entries: Iterable[dict[str, Any]]) -> None:
        """Writes captions that are objects with at least `image` and `caption`; see `add`."""
        entries = list(entries)
        lines = [_as_bytes(entry) for entry in entries]
        try:
            self._write(b"".join(lines))
        except OSError as error:
            raise self._unusable(error) from error
        self._append(entries, lines)

    def keep(self, count: int) -> None:
        """Removes all entries but the first `count`.

        Raises:
            DataError: The file cannot be written.
        """
        try:
            self._file.truncate(self._ends[count])
        except OSError as error:
            raise self._unusable(error) from error
        del self.entries[count:], self._ends[count + 1 :]

    def remove(self) -> None:
        """Closes and deletes the file. If it is closed already, it is kept."""
        if not self._file.closed:
            self.path.unlink(missing_ok=True)
            self.close()

    def close(self) -> None:
        """Closes the file, and lets other processes open it."""
        if not self._file.closed:
            self._file.close()
            self._unlock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _acquire(self) -> FileLock:
        lock = FileLock(self.path.with_name(f".{self.path.name}.lock"), timeout=0)
        in_use = DataError(f"{self.path}: another process writes captions there: wait for it, or name another file.")
        try:
            lock.acquire()
        except Timeout:
            raise in_use from None
        if not Path(lock.lock_file).exists():  # its last owner has deleted it meanwhile
            lock.release()
            raise in_use
        return lock

    def _unlock(self) -> None:
        with contextlib.suppress(OSError):  # Windows keeps open files
            Path(self._lock.lock_file).unlink()
        self._lock.release()

    def _read(self, settings: Mapping[str, Any] | None) -> tuple[int, bytes]:
        """Reads the file. Returns the number of bytes to keep, and the bytes to write after them."""
        if not self.path.exists():
            return 0, self._head
        with self.path.open("rb") as file:
            if settings is not None:
                self.settings_before = _read_settings(file.readline(_LONGEST_LINE))
                if self.settings_before != json.loads(json.dumps(settings)):
                    return 0, self._head
                self._ends = [file.tell()]
            size, number = self._ends[0], 0
            while line := file.readline(_LONGEST_LINE):
                number += 1
                entry = _read_entry(line, {"image", "caption"} | ({"score"} if settings is None else set()))
                is_whole = line.endswith(b"\n")
                if entry is None and settings is None and (is_whole or not _is_cut(line)):
                    raise DataError(
                        f"{self.path}: line {number} is no caption with its image: name another file for captions."
                    )
                if entry is None:
                    break
                self._append([entry], [line if is_whole else line + b"\n"])
                size += len(line)
                if not is_whole:
                    return size, b"\n"
        return size, b""

    def _append(self, entries: list[dict[str, Any]], lines: list[bytes]) -> None:
        for entry, line in zip(entries, lines, strict=True):
            self.entries.append(entry)
            self._ends.append(self._ends[-1] + len(line))

    def _write(self, content: bytes) -> None:
        """Writes the whole content, or nothing if the disk is full."""
        before = os.fstat(self._file.fileno()).st_size
        rest = memoryview(content)
        try:
            while rest:
                rest = rest[self._file.write(rest) :]
        except OSError:
            self._file.truncate(before)
            raise

    def _unusable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: captions cannot be kept there ({error.strerror or error}).")


def as_line(caption: "Caption") -> str:
    """Returns a caption as a line of JSON, in ASCII."""
    return _as_bytes(as_entry(caption)).decode()


def _as_bytes(value: Any) -> bytes:
    return json.dumps(value).encode() + b"\n"


def _read_entry(line: bytes, needed: set[str]) -> dict[str, Any] | None:
    """Returns the object of a line, or None if the line is not a caption as `as_line` writes it."""
    try:
        entry = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not needed <= entry.keys() <= ALL_COLUMNS.keys() or not line.startswith(_START):
        return None
    is_score = isinstance(entry.get("score", 0.0), int | float)
    return entry if is_score and isinstance(entry["image"], str) and isinstance(entry["caption"], str) else None


def _is_cut(line: bytes) -> bool:
    """Returns whether a line may be the beginning of a caption's line that was cut short."""
    if line.rstrip().endswith(b"}"):
        return False
    if len(line) <= len(_START):
        return _START.startswith(line)
    match = _IMAGE.fullmatch(line)
    rest = (match["rest"] or b"")[: len(_NEXT)] if match else b"?"
    return _NEXT.startswith(rest)


def _read_settings(line: bytes) -> dict[str, Any] | None:
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        return None
    settings = head.get("settings") if isinstance(head, dict) else None
    return settings if isinstance(settings, dict) else None

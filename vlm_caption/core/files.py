"""Writes files and folders whole or not at all.

Everything is written under another name, brought to the disk (`fsync`) and renamed, so that whatever has its final
name is complete, whenever the process or the machine stops.
"""

import contextlib
import errno
import hashlib
import os
import re
import secrets
import stat
from collections.abc import Generator, Iterable
from pathlib import Path
from typing import BinaryIO

# The confidences beside a checkpoint's weights, which `scripts/calibrate.py` writes.
CONFIDENCE_NAME = "confidence.json"

_PARTIAL = re.compile(r"\.(.+)\.[0-9a-f]+\.partial", re.DOTALL)  # of `write_bytes`

# Of a name, in bytes. File systems take 255, and a partial file's name is longer than the final one.
_LONGEST_STEM = 200


def open_regular(path: str | os.PathLike) -> BinaryIO:
    """Opens a regular file to read its bytes.

    Args:
        path: The file. A pipe or a device, from which reading may never end, is refused without waiting.

    Raises:
        OSError: The file cannot be opened, or is not a regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    except ValueError as error:  # a zero byte in the name
        raise OSError(errno.EINVAL, str(error)) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def exists(path: str | os.PathLike) -> bool:
    """Returns whether a path exists.

    Unlike `Path.exists`, it returns False where this cannot be known: in a folder that may not be searched, or for a
    name that is too long. A single bad name then costs its own picture, and not the whole job.
    """
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | os.PathLike) -> bool:
    """Returns whether a path is a regular file, and False where this cannot be known; see `exists`."""
    return os.path.isfile(path)  # noqa: PTH113


def is_folder(path: str | os.PathLike) -> bool:
    """Returns whether a path is a folder, and False where this cannot be known; see `exists`."""
    return os.path.isdir(path)  # noqa: PTH112


def write_text(path: Path, text: str, errors: str = "strict") -> None:
    """Writes a UTF-8 file, and replaces the file that was there.

    Args:
        path: The file.
        text: Its content.
        errors: How to encode characters that are not valid text; see `str.encode`.

    Raises:
        OSError: The file cannot be written. Nothing is left behind, and the old file stays.
    """
    write_bytes(path, text.encode("utf-8", errors))


def write_bytes(path: Path, content: bytes, mode: int | None = None) -> None:
    """Writes a file, and replaces the file that was there.

    Args:
        path: The file.
        content: Its content.
        mode: Its permissions, by default those of new files.

    Raises:
        OSError: The file cannot be written. Nothing is left behind, and the old file stays.
    """
    # Processes of several machines or containers may have the same number.
    partial = path.with_name(f".{_partial_stem(path)}.{secrets.token_hex(8)}.partial")
    try:
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if mode is not None:
            partial.chmod(stat.S_IMODE(mode))
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def remove_partials(paths: Iterable[Path]) -> None:
    """Removes what a kill in the middle of `write_bytes` has left beside these files."""
    by_folder: dict[Path, set[str]] = {}
    for path in paths:
        by_folder.setdefault(path.parent, set()).add(_partial_stem(path))
    for folder, stems in by_folder.items():
        with contextlib.suppress(OSError):  # a folder that cannot be read holds none of ours
            for entry in list(folder.iterdir()):
                if (match := _PARTIAL.fullmatch(entry.name)) and match[1] in stems:
                    entry.unlink(missing_ok=True)


def _partial_stem(path: Path) -> str:
    """Returns what the partial file of a file is named after: its name, or a digest of a name that is too long."""
    name = os.fsencode(path.name)
    return path.name if len(name) <= _LONGEST_STEM else hashlib.sha256(name).hexdigest()


def move_folder(partial: Path, folder: Path) -> None:
    """Renames a folder once everything in it is on the disk.

    Args:
        partial: The folder that was written.
        folder: Its final name, on the same file system, which nothing has yet.

    Raises:
        OSError: The folder cannot be renamed, for example because `folder` exists.
    """
    for path in [*partial.rglob("*"), partial]:
        sync(path)
    partial.rename(folder)
    sync(folder.parent)


@contextlib.contextmanager
def writing_files(folder: Path, partial_name: str) -> Generator[Path]:
    """Yields a new folder to write files to, and then moves each file into `folder`, weights last.

    Args:
        folder: The final folder. Files of the same names are replaced.
        partial_name: The name of the new folder inside `folder`.

    Raises:
        OSError: A file cannot be written.
    """
    partial = folder / partial_name
    partial.mkdir(parents=True)
    yield partial
    for path in sorted(partial.iterdir(), key=lambda path: path.suffix == ".safetensors"):
        sync(path)
        path.replace(folder / path.name)
    partial.rmdir()
    sync(folder)


def sync(path: Path) -> None:
    """Brings a file or a folder to the disk.

    A name may reach the disk before the content that it names, and a power cut would then leave an empty file.
    """
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
    descriptor = os.open(path, os.O_RDONLY if os.name != "nt" else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

"""Checks the files that a command is going to write, before it begins its work."""

import errno
import os
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from .errors import ConfigError

# How each kind of file that the commands write begins, unless it is empty.
PAGE = (b"<!doctype html",)
BAD_IMAGES = (b'{"file": ',)
RESULTS = (b"[",)
REFERENCES = (b'{"images": ', b'{\n"images": ')
TABLE = (b"image_id,image,caption",)
CSV = (b"image,caption,score", b"\xef\xbb\xbfimage,caption,score")
PARQUET = (b"PAR1",)


@dataclass(frozen=True)
class Output:
    """A file that a command is going to write.

    Attributes:
        option: The option that names the file or its folder, as the command line has it.
        path: The file.
        starts: How a file of its kind may begin. An existing file that begins otherwise belongs to somebody else. With
            None, the code that opens the file checks its content.
        makes_folders: Whether the command creates the folders that the file goes into.
    """

    option: str
    path: Path
    starts: tuple[bytes, ...] | None
    makes_folders: bool = False


def check_outputs(outputs: Iterable[Output], inputs: Iterable[str | os.PathLike | None] = ()) -> None:
    """Checks that the files can be written without losing anything.

    Args:
        outputs: The files to write.
        inputs: The files and folders that the command reads. They need not exist.

    Raises:
        ConfigError: A file is named twice or is an input, it is no regular file, it holds something of another kind,
            or it cannot be written. The message names the option and the file.
    """
    read = {os.path.realpath(path) for path in inputs if path is not None}
    claimed: dict[str, str] = {}
    for output in outputs:
        place = os.path.realpath(output.path)
        if place in read and output.starts is not None:
            raise ConfigError(f"{output.option} {output.path} is read by the same command: name another file.")
        if place in claimed:
            raise ConfigError(
                f"{output.option} {output.path} is the file of {claimed[place]} too: give each a file of its own."
            )
        claimed[place] = output.option
        _check(output)


def _check(output: Output) -> None:
    where = f"{output.option} {output.path}"
    try:
        if output.path.exists():
            if not stat.S_ISREG(output.path.stat().st_mode):
                raise ConfigError(f"{where} is no regular file: name another one.")
            with output.path.open("r+b") as file:
                head = file.read(64).lstrip().lower()
            starts = output.starts
            if head and starts is not None and not any(_agree(head, start.strip().lower()) for start in starts):
                raise ConfigError(f"{where} holds something else, which would be lost: name another file.")
            return
        folder = output.path.parent
        while output.makes_folders and not folder.exists() and folder != folder.parent:
            folder = folder.parent
        if not folder.is_dir():
            reason = os.strerror(errno.ENOTDIR if folder.exists() else errno.ENOENT)
            raise ConfigError(f"{output.option}: there is no folder {folder} ({reason}: '{output.path}')")
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"{where} cannot be written: the folder {folder} is read-only.")
    except OSError as error:
        raise ConfigError(f"{where} cannot be written ({error.strerror or error}).") from error


def _agree(head: bytes, start: bytes) -> bool:
    """Returns whether a file that begins with `head` is of the kind that begins with `start`.

    A file that was cut short by a kill may end within `start`.
    """
    length = min(len(head), len(start))
    return head[:length] == start[:length]

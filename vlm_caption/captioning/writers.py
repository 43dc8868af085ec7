"""Writes captions to standard output, to a file, or to a text file beside each picture."""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TextIO

from ..core import outputs
from ..core.console import printable
from ..core.errors import DataError, ImageError
from ..core.files import exists, write_text
from ..core.text import readable
from .caption_file import CaptionFile, as_entry, as_line
from .places import place_of
from .tables import csv_lines, read_table, write_table

if TYPE_CHECKING:
    from .captioner import Caption

TABLE_FORMATS = ("csv", "parquet", "coco")
FORMATS = ("text", "json", *TABLE_FORMATS)


class Writer(Protocol):
    """Takes the captions of a job, batch by batch.

    Attributes:
        needs_checkpoint: Whether captions need their `checkpoint`, the identifier of the weights.
        resumes: Whether `has` tells what an earlier job has written.
    """

    needs_checkpoint: bool
    resumes: bool

    def has(self, name: str) -> bool:
        """Returns whether a picture, or a row of vectors, has its captions already.

        Args:
            name: The name as in `Caption.image`.
        """

    def add(self, captions: "Sequence[Caption]") -> None:
        """Writes the captions of a batch.

        Raises:
            DataError: They cannot be written.
        """

    def finish(self) -> None:
        """Completes the output at the end of the job.

        Raises:
            DataError: It cannot be written.
        """

    def close(self) -> None:
        """Closes the output, whether or not the job is complete."""


class StandardOutput:
    """Prints a line for each caption.

    Args:
        output_format: "text", "json" or "csv".
        named: Whether each line of text begins with the picture's name.
        file: The stream to print to, by default standard output.
    """

    def __init__(self, output_format: str, named: bool, file: TextIO | None = None) -> None:
        self.format, self.named, self.file = output_format, named, file or sys.stdout
        self.needs_checkpoint = output_format != "text"
        self.resumes = False
        if output_format == "csv":
            print(csv_lines([], head=True), end="", file=self.file, flush=True)

    def has(self, name: str) -> bool:
        return False

    def add(self, captions: "Sequence[Caption]") -> None:
        print("".join(map(self._line, captions)), end="", file=self.file, flush=True)

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _line(self, caption: "Caption") -> str:
        if self.format == "json":
            return as_line(caption)
        if self.format == "csv":
            return csv_lines([as_entry(caption)])
        text = f"{readable(caption.image)}: {caption.text}" if self.named else caption.text
        return printable(text) + "\n"


class OutputFile:
    """Keeps captions in a file: JSON lines, or a table that is written at the end.

    The captions of a table are kept as JSON lines in a hidden file beside it until then.

    Args:
        path: The file.
        output_format: "json", "csv", "parquet" or "coco".

    Raises:
        DataError: The file holds something else, or cannot be read or written.
    """

    needs_checkpoint = True
    resumes = True

    def __init__(self, path: Path, output_format: str) -> None:
        self.path, self.format = path, output_format
        self._is_table = output_format in TABLE_FORMATS
        self.file = CaptionFile(path.with_name(f".{path.name}.unfinished.jsonl") if self._is_table else path)
        try:  # with the file locked: another process may have been writing the table
            self.before = read_table(path, output_format) if self._is_table else []
        except DataError:
            self.close()
            raise
        names = {entry["image"] for entry in (*self.before, *self.file.entries)}
        self._done = {*names, *map(place_of, names)}

    def has(self, name: str) -> bool:
        return readable(name) in self._done or place_of(name) in self._done

    def check_checkpoint(self, checkpoint: str) -> None:
        """Checks that the captions in the file were written by the same checkpoint.

        Raises:
            DataError: They were written by another one.
        """
        others = {entry.get("checkpoint") for entry in (*self.before, *self.file.entries)} - {checkpoint, None, ""}
        if others:
            raise DataError(
                f"{self.path} has captions of another checkpoint ({', '.join(sorted(map(str, others)))}, and this one "
                f"is {checkpoint}): name another file."
            )

    def add(self, captions: "Sequence[Caption]") -> None:
        self.file.add(*captions)

    def finish(self) -> None:
        if self._is_table:
            there = {entry["image"] for entry in self.before}  # a kill may have come before the file was removed
            new = [entry for entry in self.file.entries if entry["image"] not in there]
            write_table(self.path, self.format, [*self.before, *new])
            self.file.remove()

    def close(self) -> None:
        if self._is_table and not self.file.entries:
            self.file.remove()
        self.file.close()


class Sidecars:
    """Writes NAME.txt beside each picture. By default a picture that has such a file is not captioned.

    Args:
        prefix: A text before each caption.
        suffix: A text after each caption.
        append: Whether to add captions to existing files, on lines of their own.
        overwrite: Whether to replace existing files.
    """

    needs_checkpoint = False

    def __init__(self, prefix: str = "", suffix: str = "", append: bool = False, overwrite: bool = False) -> None:
        self.prefix, self.suffix, self.append, self.overwrite = prefix, suffix, append, overwrite
        self.resumes = not (append or overwrite)

    def has(self, name: str) -> bool:
        return self.resumes and exists(_sidecar(name))

    def add(self, captions: "Sequence[Caption]") -> None:
        texts: dict[Path, str] = {}
        for caption in captions:
            path = _sidecar(caption.image)
            texts[path] = texts.get(path, "") + f"{self.prefix}{caption.text}{self.suffix}\n"
        for path, text in texts.items():
            try:
                before = path.read_text(encoding="utf-8", errors="surrogateescape") if self.append else ""
            except FileNotFoundError:
                before = ""
            except OSError as error:
                raise DataError(f"{path}: the caption cannot be added ({error.strerror or error})") from error
            try:
                separator = "\n" if before and not before.endswith("\n") else ""
                write_text(path, before + separator + text, errors="surrogateescape")
            except OSError as error:
                raise DataError(f"{path}: the caption cannot be written ({error.strerror or error})") from error

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass


def check_sidecars(names: Sequence[str]) -> dict[str, ImageError]:
    """Returns the errors of the pictures that cannot have a text file of their own beside them, by name."""
    errors: dict[str, ImageError] = {}
    owners: dict[Path, str] = {}
    for name in names:
        path = _sidecar(os.path.abspath(name))  # noqa: PTH100 - links are kept
        if not exists(name):
            errors[name] = ImageError(name, "there is no file on this computer to write a caption beside")
        elif not os.access(path.parent, os.W_OK):
            errors[name] = ImageError(name, f"{path.name} cannot be written beside it: the folder is read-only")
        elif (owner := owners.setdefault(path, name)) != name:
            errors[name] = ImageError(name, f"{path.name} is for the caption of {owner}: rename one of the two")
    return errors


def _sidecar(name: str) -> Path:
    return Path(name).with_suffix(".txt")


class ErrorLog:
    """A file of JSON lines with `file` and `reason` for each picture without a caption. An old file is replaced.

    Args:
        path: The file. With None, nothing is written.

    Raises:
        DataError: The file cannot be written.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._write("w", "")

    def add(self, error: ImageError) -> None:
        """Writes the error of a picture.

        Raises:
            DataError: The file cannot be written.
        """
        self._write("a", json.dumps({"file": error.source, "reason": error.reason}, ensure_ascii=False) + "\n")

    def _write(self, mode: str, text: str) -> None:
        if self.path is None:
            return
        try:
            with self.path.open(mode, encoding="utf-8", errors="replace") as file:
                file.write(text)
        except OSError as error:
            raise DataError(f"{self.path}: bad pictures cannot be listed there ({error.strerror or error})") from error


def job_outputs(output: Path | None, output_format: str, bad_images: Path | None) -> list[outputs.Output]:
    """Returns the files that a job writes, for [`check_outputs`]."""
    starts = {"csv": outputs.CSV, "parquet": outputs.PARQUET, "coco": outputs.RESULTS}
    found = []
    if output is not None:
        found.append(outputs.Output("--output", output, starts.get(output_format), makes_folders=True))
    if bad_images is not None:
        found.append(outputs.Output("--bad-images", bad_images, outputs.BAD_IMAGES))
    return found

"""Writes captions to standard output or to a file; `beside.py` writes them to where each picture is."""

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol, TextIO

from ..core import outputs
from ..core.console import printable
from ..core.errors import DataError, ImageError
from ..core.files import remove_partials
from ..core.text import readable
from .caption_file import CaptionFile, as_line
from .columns import COLUMNS, Entry, as_entry
from .places import place_of
from .tables import csv_head, csv_lines, encode_table, read_table, write_table

if TYPE_CHECKING:
    from .caption import Caption

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

    def add(self, captions: "Sequence[Caption]") -> list[ImageError]:
        """Writes the captions of a batch.

        Returns:
            The errors of the pictures whose captions have no place because of what these pictures are.

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
        columns: The columns of "csv".
        file: The stream to print to, by default standard output.
    """

    resumes = False

    def __init__(
        self, output_format: str, named: bool, columns: Sequence[str] = tuple(COLUMNS), file: TextIO | None = None
    ) -> None:
        self.format, self.named, self.columns, self.file = output_format, named, columns, file or sys.stdout
        self.needs_checkpoint = output_format != "text"
        if output_format == "csv":
            self._print(csv_head(columns))

    def has(self, name: str) -> bool:
        return False

    def add(self, captions: "Sequence[Caption]") -> list[ImageError]:
        self._print("".join(map(self._line, captions)))
        return []

    def finish(self) -> None:
        pass

    def close(self) -> None:
        pass

    def _line(self, caption: "Caption") -> str:
        if self.format == "json":
            return as_line(caption)
        if self.format == "csv":
            return csv_lines([as_entry(caption)], self.columns)
        text = f"{readable(caption.image)}: {caption.text}" if self.named else caption.text
        return printable(text) + "\n"

    def _print(self, text: str) -> None:
        print(text, end="", file=self.file, flush=True)


class StandardTable:
    """Writes a table to standard output once it is complete, for the formats that cannot be written line by line.

    Args:
        output_format: "parquet" or "coco".
        file: The stream to write to, by default standard output.
    """

    needs_checkpoint = True
    resumes = False

    def __init__(self, output_format: str, file: BinaryIO | None = None) -> None:
        self.format, self.file = output_format, file or sys.stdout.buffer
        self.entries: list[Entry] = []

    def has(self, name: str) -> bool:
        return False

    def add(self, captions: "Sequence[Caption]") -> list[ImageError]:
        self.entries.extend(map(as_entry, captions))
        return []

    def finish(self) -> None:
        self.file.write(encode_table(self.format, self.entries))
        self.file.flush()

    def close(self) -> None:
        pass


class OutputFile:
    """Keeps captions in a file: JSON lines, or a table that is written at the end.

    The captions of a table are kept as JSON lines in a hidden file beside it until then.

    Args:
        path: The file.
        output_format: "json", "csv", "parquet" or "coco".
        captions_each: How many captions a picture gets. If a kill left the last picture with fewer, these are removed,
            and the picture is captioned again.

    Raises:
        DataError: The file holds something else, or cannot be read or written.
    """

    needs_checkpoint = True
    resumes = True

    def __init__(self, path: Path, output_format: str, captions_each: int = 1) -> None:
        self.path, self.format = path, output_format
        self._is_table = output_format in TABLE_FORMATS
        self.file = CaptionFile(path.with_name(f".{path.name}.unfinished.jsonl") if self._is_table else path)
        self._remove_incomplete(captions_each)
        try:  # with the file locked: another process may have been writing the table
            remove_partials([path])
            self.before = read_table(path, output_format) if self._is_table else []
        except DataError:
            self.close()
            raise
        names = self.names
        self._done = {*names, *map(place_of, names)}

    def has(self, name: str) -> bool:
        return readable(name) in self._done or place_of(name) in self._done

    @property
    def names(self) -> set[str]:
        """The pictures, or rows of vectors, that have captions in the file, as the file names them."""
        return {entry["image"] for entry in (*self.before, *self.file.entries)}

    def check_checkpoint(self, checkpoint: str) -> None:
        """Checks that the captions in the file were written by the same checkpoint.

        Raises:
            DataError: They were written by another one.
        """
        others = self._checkpoints() - {checkpoint}
        if others:
            raise DataError(
                f"{self.path} has captions of another checkpoint ({', '.join(sorted(map(str, others)))}, and this one "
                f"is {checkpoint}): name another file."
            )

    def check_vectors(self, ending: str) -> None:
        """Checks that the captions in the file are of the same vectors, by how their `checkpoint` ends.

        Raises:
            DataError: They are of others.
        """
        if any(not str(checkpoint).endswith(ending) for checkpoint in self._checkpoints()):
            raise DataError(f"{self.path} has captions of other vectors: name another file.")

    def _checkpoints(self) -> set[Any]:
        return {entry.get("checkpoint") for entry in (*self.before, *self.file.entries)} - {None, ""}

    def add(self, captions: "Sequence[Caption]") -> list[ImageError]:
        self.file.add(*captions)
        return []

    def finish(self) -> None:
        if self._is_table:
            there = {entry["image"] for entry in self.before}  # a kill may have come before the file was removed
            new = [entry for entry in self.file.entries if entry["image"] not in there]
            write_table(self.path, self.format, [*self.before, *new])
            self.file.remove()

    def _remove_incomplete(self, captions_each: int) -> None:
        images = [entry["image"] for entry in self.file.entries[-captions_each:]]
        if images and (last := images.count(images[-1])) < captions_each:
            self.file.keep(len(self.file.entries) - last)

    def close(self) -> None:
        if self._is_table and not self.file.entries:
            self.file.remove()
        self.file.close()


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


def job_outputs(
    output: Path | None, output_format: str, bad_images: Path | None, review: Path | None = None
) -> list[outputs.Output]:
    """Returns the files that a job writes, for [`check_outputs`]."""
    starts = {"csv": outputs.CSV, "parquet": outputs.PARQUET, "coco": outputs.RESULTS}
    found = []
    if output is not None:
        found.append(outputs.Output("--output", output, starts.get(output_format), makes_folders=True))
    if bad_images is not None:
        found.append(outputs.Output("--bad-images", bad_images, outputs.BAD_IMAGES))
    if review is not None:
        found.append(outputs.Output("--review", review, None, makes_folders=True))
    return found

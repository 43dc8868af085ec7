"""Pictures of a corpus opened within limits, and what becomes of those that cannot be.

Either the first one ends the run with its error, or each is left out, counted and written down (`BadImages`).
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageOps

from ..core.console import progress
from ..core.errors import DataError, ImageError
from ..core.files import write_text
from ..core.threads import map_in_threads
from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..images.opening import open_image
from .places import Place, open_place
from .records import Problem

BAD_IMAGES_NAME = "bad_images.jsonl"


@dataclass(frozen=True, slots=True)
class PictureOpener:
    """Opens an entry of a dataset's column `image`, as training, feature caching and evaluation do.

    Attributes:
        max_pixels, max_bytes: The limits of `open_image`.
        flip: Whether to mirror pictures left to right.
    """

    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES
    flip: bool = False

    def __call__(self, image: str) -> Image.Image:
        """Opens the picture, upright and RGB.

        Raises:
            ImageError: It cannot be opened.
        """
        picture = open_image(open_place(image, self.max_bytes), self.max_pixels, self.max_bytes)
        return ImageOps.mirror(picture) if self.flip else picture


class BadImages:
    """The pictures that are left out, in a file of JSON lines with `file` and `reason`, written as they are found.

    Every run finds all of them again, in the caches or in the pictures. A line from an earlier run stays where it is
    and is not written twice, and `settle` removes those that no longer hold.

    Args:
        path: The file. There is none before there is a bad picture. None: count only.
        max_share: More than this share of all pictures is too many.

    Attributes:
        reasons: Why each picture was left out, by its file (`Place.described`), in the order in which they were found.
    """

    def __init__(self, path: Path | None = None, max_share: float = 0.05):
        self.path, self.max_share = path, max_share
        self.reasons: dict[str, str] = {}
        self._total: int | None = None
        self._written: dict[str, str] = {}
        if path is not None and path.exists():
            text = path.read_text(encoding="utf-8", errors="replace")
            for line in text.split("\n"):
                with suppress(ValueError, KeyError, TypeError):  # a line that a kill cut short
                    entry = json.loads(line)
                    self._written[entry["file"]] = entry["reason"]
            if text != _as_lines(self._written):
                self._rewrite(self._written)

    def expect(self, more: int) -> None:
        """Adds to the number of pictures. From the first call on, too many bad ones end the run.

        Args:
            more: How many further pictures there are, besides bad ones that were found before the first call.

        Raises:
            DataError: There are too many already.
        """
        self._total = more + (len(self.reasons) if self._total is None else self._total)
        self._check()

    def add(self, image: str, reason: str) -> None:
        """Writes down a bad picture, an entry of a dataset's column `image`.

        Raises:
            DataError: There are too many now, or the file cannot be written.
        """
        file = Place.parse(image).described
        if file in self.reasons:
            return
        self.reasons[file] = reason
        if self.path is not None and self._written.get(file) != reason:
            try:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                with self.path.open("a", encoding="utf-8", errors="replace") as out:
                    out.write(_as_lines({file: reason}))
            except OSError as error:
                raise _unwritable(self.path, error) from error
            self._written[file] = reason
        self._check()

    def add_missing(self, problem: Problem) -> None:
        """Writes down a picture that `Corpus.load` does not find; see `add`."""
        self.add(problem.image or problem.where, problem.reason)

    def settle(self) -> None:
        """Is called once all pictures have been looked at: removes lines of the file that no longer hold.

        Raises:
            DataError: The file cannot be written.
        """
        if self.path is not None and self._written != self.reasons:
            self._rewrite(self.reasons)

    def _rewrite(self, entries: dict[str, str]) -> None:
        assert self.path is not None
        try:
            if entries:
                write_text(self.path, _as_lines(entries), errors="replace")
            else:
                self.path.unlink(missing_ok=True)
        except OSError as error:
            raise _unwritable(self.path, error) from error
        self._written = dict(entries)

    def _check(self) -> None:
        if self._total is None or len(self.reasons) <= self.max_share * self._total:
            return
        file, reason = next(iter(self.reasons.items()))
        listed = f"; all so far are in {self.path}" if self.path is not None else ""
        raise DataError(
            f"at least {len(self.reasons):,} of {self._total:,} images are bad, more than data.max_bad_share "
            f"{self.max_share:g} allows (first: {file}: {reason}{listed}): mend them, or raise data.max_bad_share"
        )


def check_pictures(
    images: Sequence[str], open_picture: PictureOpener, on_error: Callable[[int, ImageError], None]
) -> None:
    """Opens every picture, and gives the row and the error of each that cannot be opened to `on_error`."""

    def fault(image: str) -> ImageError | None:
        try:
            open_picture(image)
        except ImageError as error:
            return error.detached()
        return None

    for row, error in enumerate(progress(map_in_threads(fault, images), total=len(images), desc="checking images")):
        if error is not None:
            on_error(row, error)


def _as_lines(entries: dict[str, str]) -> str:
    return "".join(
        json.dumps({"file": file, "reason": reason}, ensure_ascii=False) + "\n" for file, reason in entries.items()
    )


def _unwritable(path: Path, error: OSError) -> DataError:
    return DataError(f"{path}: bad pictures cannot be written down there ({error.strerror or error})")

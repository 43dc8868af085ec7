"""Captions many pictures or vectors, except those that have their captions already."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..core.digests import checksum_file
from ..core.errors import ImageError
from ..images.opening import ImageSource, describe
from .caption import Caption
from .inputs import is_vectors_file
from .review import Review
from .writers import OutputFile, Writer

if TYPE_CHECKING:
    from ..data.vectors import Vectors

Result = list[Caption] | ImageError


class CaptionJob:
    """The pictures, or rows of vectors, to caption, and where their captions go.

    The members of a batch are fixed. What is drawn at random with a seed depends on all of them, so a job that was
    killed and is repeated with the same seed captions whole batches, and writes those captions that are missing. It
    ends with the same captions.

    Args:
        inputs: The pictures, or the vectors.
        writers: Where captions go.
        batch_size: The number of inputs at a time.
        review: Where the captions go that are not sure enough, instead of to the writers.

    Attributes:
        num_done: How many inputs have their captions already.
        num_left: How many are left.
    """

    def __init__(
        self,
        inputs: "Sequence[ImageSource] | Vectors",
        writers: Sequence[Writer],
        batch_size: int,
        review: Review | None = None,
    ) -> None:
        self.inputs, self.writers, self.batch_size, self.review = inputs, writers, batch_size, review
        self._outputs = [*writers, *([review.output] if review else [])]
        self._vectors = ""  # what tells rows of one file from those of the same numbers in another
        if is_vectors_file(inputs):
            self._vectors = f"/vectors:{checksum_file(Path(inputs.path))[:12]}"
            for writer in self._outputs:
                if isinstance(writer, OutputFile):
                    writer.check_vectors(self._vectors)
        # A writer that adds to what is there cannot tell what it has written, so another one decides if there is one.
        deciding = [writer for writer in writers if writer.resumes] or writers
        self._left = [
            row
            for row, name in enumerate(self._names())
            if not (all(w.has(name) for w in deciding) or (review is not None and review.has(name)))
        ]
        self.num_left = len(self._left)
        self.num_done = len(inputs) - self.num_left

    def run(self, captioner: Any, on_error: Callable[[ImageError], None], **settings: Any) -> Iterator[None]:
        """Captions what is left, and yields after each input.

        Args:
            captioner: A `Captioner`; for pictures also one of `vlm_caption.runtime`.
            on_error: Gets the error of each input that has no caption.
            **settings: Arguments of `caption_each`. A `question` with an entry for each input has one for all inputs,
                also for those that have their captions already.

        Raises:
            DataError: Captions cannot be written.
            ValueError: A setting is wrong; see `caption_each`.
        """
        checkpoint = ""
        if any(writer.needs_checkpoint for writer in self._outputs):
            checkpoint = captioner.checkpoint + self._vectors
        for writer in self._outputs:
            if isinstance(writer, OutputFile):
                writer.check_checkpoint(checkpoint)
        batches = self._batches(whole=settings.get("seed") is not None)
        if isinstance(settings.get("question"), list):
            settings["question"] = [settings["question"][row] for rows in batches for row in rows]
        left = set(self._left)
        for rows, batch in zip(batches, self._results(captioner, batches, settings), strict=True):
            results = [_refuse_empty(result) for row, result in zip(rows, batch, strict=True) if row in left]
            written = [caption for result in results if not isinstance(result, ImageError) for caption in result]
            captions = [replace(caption, checkpoint=checkpoint) for caption in written]
            if self.review is not None:
                captions = self.review.keep_unsure(captions)
            for writer in self.writers:
                for error in writer.add([caption for caption in captions if not writer.has(caption.image)]):
                    on_error(error)
            for result in results:
                if isinstance(result, ImageError):
                    on_error(result)
                yield

    def finish(self) -> None:
        """Completes the outputs, once all inputs have been captioned.

        Raises:
            DataError: An output cannot be written.
        """
        for writer in self.writers:
            writer.finish()

    def _names(self) -> Iterable[str]:
        """Returns what captions call the inputs."""
        if is_vectors_file(self.inputs):
            return map(self.inputs.name, range(len(self.inputs)))
        return map(describe, self.inputs)

    def _batches(self, whole: bool) -> list[list[int]]:
        """Returns the rows of each batch that is not done.

        Args:
            whole: Whether a batch keeps its members that have their captions.
        """
        batches: dict[int, list[int]] = {}
        for row in self._left:
            batches.setdefault(row // self.batch_size, []).append(row)
        if not whole:
            return list(batches.values())
        starts = [number * self.batch_size for number in batches]
        return [list(range(start, min(start + self.batch_size, len(self.inputs)))) for start in starts]

    def _results(self, captioner: Any, batches: list[list[int]], settings: dict[str, Any]) -> Iterator[list[Result]]:
        if is_vectors_file(self.inputs):
            names = [self.inputs.name(row) for rows in batches for row in rows]
            captions = captioner.caption_vectors(self.inputs.select(names), batch_size=self.batch_size, **settings)
            of_each = (list(group) for _, group in groupby(captions, key=lambda caption: caption.image))
            for rows in batches:
                yield list(islice(of_each, len(rows)))
            return
        pictures = ([self.inputs[row] for row in rows] for rows in batches)
        yield from captioner.caption_batches(pictures, **settings)


def _refuse_empty(result: Result) -> Result:
    """Returns an error in place of captions one of which is empty."""
    if isinstance(result, ImageError) or all(caption.text for caption in result):
        return result
    return ImageError(
        result[0].image,
        "the model wrote an empty caption: try other settings, such as --min-new-tokens 5 or another --prompt",
    )

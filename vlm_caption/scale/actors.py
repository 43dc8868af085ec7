"""What runs in the processes of Ray: an actor that keeps a captioner loaded."""

import os
import pickle
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..captioning.caption import Caption
from ..captioning.prompts import NOT_AS_MANY, Question
from ..core.console import first_line_of
from ..core.errors import ImageError
from ..core.extras import require
from ..images.opening import ImageSource, describe
from ..runtime.files import is_export

if TYPE_CHECKING:
    from .. import runtime
    from ..captioning.captioner import Captioner

Result = list[Caption] | ImageError

# A batch in the middle of which so many processes have ended is given up.
MOST_DEATHS = 3
_DEADLY = (
    f"{MOST_DEATHS} processes have ended while they captioned its batch, for lack of memory or by a damaged picture: "
    "repeat the command with a smaller --batch-size, or leave the picture out"
)

# Libraries that start threads by themselves read these when they are imported. torch computes with OpenMP.
_THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "RAYON_NUM_THREADS")


@dataclass(frozen=True)
class CaptionerSource:
    """What a process needs to know to load a captioner.

    Attributes:
        checkpoint: A folder, an exported one too, or a Hub id.
        device: The device of a checkpoint that is not exported; see `Captioner.from_pretrained`.
        dtype: The `torch.dtype` of its weights; None: as they were saved.
    """

    checkpoint: str
    device: str | None
    dtype: Any

    @property
    def is_export(self) -> bool:
        """Whether the checkpoint was exported."""
        return is_export(self.checkpoint)

    def load(self, threads: int | None = None, has_confidence: bool = True) -> "Captioner | runtime.Captioner":
        """Loads the captioner.

        Args:
            threads: The number of threads, by default as the libraries choose it.
            has_confidence: Whether captions get a confidence, if the checkpoint has any.

        Raises:
            CheckpointError, BackboneError, ConfigError: See `Captioner.from_pretrained`.
            MissingPackageError: torch or onnxruntime is not installed.
        """
        if self.is_export:
            require("onnxruntime", "An exported captioner")
            from ..runtime.captioner import Captioner as Exported

            captioner = Exported.from_pretrained(self.checkpoint, threads)
        else:
            torch = require("torch", "A checkpoint that is not exported")
            from ..captioning.captioner import Captioner

            if threads is not None:
                torch.set_num_threads(threads)
            captioner = Captioner.from_pretrained(self.checkpoint, self.device, self.dtype)
        if not has_confidence:
            captioner.confidence = None
        return captioner


@dataclass(frozen=True)
class Work:
    """A batch of pictures.

    Attributes:
        pictures: The pictures.
        question: The question about all of them, or a list with an entry for each; see `Captioner.caption_each`.
    """

    pictures: Sequence[ImageSource]
    question: Question


class Deaths:
    """Counts how many processes of this machine have ended in the middle of a batch.

    A picture may end each process that opens it, and Ray Data hands its block to the next one without end.

    Args:
        job: The name of the job, which no other one has.
    """

    def __init__(self, job: str) -> None:
        self.folder = Path(tempfile.gettempdir()) / job

    def count(self, number: int) -> int:
        """Returns how many processes have ended in the middle of the batch of this number."""
        try:
            return (self.folder / str(number)).stat().st_size
        except FileNotFoundError:
            return 0

    def begin(self, number: int) -> None:
        """Counts this process, until `end`."""
        self.folder.mkdir(exist_ok=True)
        with (self.folder / str(number)).open("ab") as file:
            file.write(b".")

    def end(self, number: int) -> None:
        """Forgets the batch, which has its captions."""
        (self.folder / str(number)).unlink(missing_ok=True)

    def clear(self) -> None:
        """Forgets the job."""
        shutil.rmtree(self.folder, ignore_errors=True)


class CaptionActor:
    """Keeps a captioner loaded, and captions the blocks of batches that Ray Data gives it.

    Args:
        source: The captioner.
        threads: The number of threads.
        has_confidence: Whether captions get a confidence.
        folder: The folder that relative paths are relative to.
        job: The name of the job.
        settings: Arguments of `caption_batches`.
    """

    def __init__(
        self,
        source: CaptionerSource,
        threads: int,
        has_confidence: bool,
        folder: str,
        job: str,
        settings: dict[str, Any],
    ) -> None:
        self.source, self.threads, self.has_confidence = source, threads, has_confidence
        self.folder, self.settings = folder, settings
        self.deaths = Deaths(job)

    @staticmethod
    def environment(threads: int) -> dict[str, str]:
        """Returns the environment variables of the process."""
        return dict.fromkeys(_THREAD_VARIABLES, str(threads)) | {"TOKENIZERS_PARALLELISM": "false"}

    @cached_property
    def captioner(self) -> "Captioner | runtime.Captioner":
        """The captioner, which the first block loads: so an error reaches the caller as those of blocks do."""
        os.chdir(self.folder)
        return self.source.load(self.threads, self.has_confidence)

    def __call__(self, block: dict[str, Any]) -> dict[str, Any]:
        """Captions a block.

        Args:
            block: The columns "number" and "work" of the batches: their numbers, and `Work` as a pickle.

        Returns:
            The columns "number" and "results": a list of results as a pickle, or an error that ends the job.
        """
        numbers = [int(number) for number in block["number"]]
        work = [pickle.loads(each) for each in block["work"]]
        try:
            results: list[list[Result] | Exception] = [*self._caption(numbers, work)]
        except Exception as error:  # of any library; the caller raises it
            results = [RuntimeError(f"An actor of Ray has failed: {first_line_of(error)}")] * len(work)
        return {"number": numbers, "results": [pickle.dumps(each) for each in results]}

    def _caption(self, numbers: list[int], work: list[Work]) -> Iterator[list[Result]]:
        """Yields the results of each batch."""
        given_up = {number for number in numbers if self.deaths.count(number) >= MOST_DEATHS}
        left = [(number, each) for number, each in zip(numbers, work, strict=True) if number not in given_up]

        def begin() -> Iterator[Sequence[ImageSource]]:
            for number, each in left:
                self.deaths.begin(number)
                yield each.pictures

        results: Iterator[list[Result]] = iter(())
        if left:
            question = join_questions([each.question for _, each in left])
            results = self.captioner.caption_batches(begin(), question=question, **self.settings)
        for number, each in zip(numbers, work, strict=True):
            if number in given_up:
                yield [ImageError(describe(picture), _DEADLY) for picture in each.pictures]
            else:
                yield next(results)
                self.deaths.end(number)


def split_question(question: Question, lengths: Iterable[int]) -> Iterator[Question]:
    """Yields the question about each batch, given those about all pictures.

    Args:
        question: See `Captioner.caption_each`.
        lengths: The number of pictures in each batch.

    Raises:
        ValueError: There are not as many questions as pictures.
    """
    if question is None or isinstance(question, str):
        yield from (question for _ in lengths)
        return
    left = iter(question)
    for length in lengths:
        own = list(islice(left, length))
        if len(own) < length:
            raise ValueError(NOT_AS_MANY)
        yield own
    if next(left, None) is not None:
        raise ValueError(NOT_AS_MANY)


def join_questions(questions: Sequence[Question]) -> Question:
    """Returns the questions about all pictures, given those about each batch; see `split_question`."""
    lists = [question for question in questions if isinstance(question, list)]
    return list(chain.from_iterable(lists)) if lists else next(iter(questions), None)

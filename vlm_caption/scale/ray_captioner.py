"""Captions pictures with actors of Ray Data.

with RayCaptioner.from_pretrained("checkpoints/embedded", actors=2) as captioner:
    for result in captioner.caption_each(pictures):
        print(result)
"""

import os
import pickle
import uuid
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Self

from ..captioning.batches import caption_one_by_one
from ..captioning.caption import Caption
from ..captioning.checkpoints import DEFAULT_CHECKPOINT
from ..captioning.prompts import Question
from ..core.console import first_line_of
from ..core.errors import ConfigError, ImageError
from ..images.opening import ImageSource
from .actors import CaptionActor, CaptionerSource, Deaths, Result, Work, split_question
from .cluster import count_actors, open_ray

if TYPE_CHECKING:
    import torch

    from .. import runtime
    from ..captioning.captioner import Captioner

# Batches that one call of an actor captions. They are fewer where there is little to do, so that all actors end
# together. A killed caller loses what the calls that are running have done.
_LARGEST_BLOCK = 32
_BLOCKS_AN_ACTOR = 16


class RayCaptioner:
    """A captioner in several processes: actors of Ray, which keep the model loaded. It captions pictures alone.

    The captions are those of the captioner in this process, in the same order. When an actor ends, Ray starts another
    one, which captions its batches. This process keeps a copy of the model too, which checks settings.

    Args:
        captioner: The captioner in this process.
        source: What the actors load.
        actors: The number of actors.
        threads: The number of threads of each.
        owns_ray: Whether `close` shuts Ray down.

    Attributes:
        confidence: What tells how probably captions are right. Set it to None to save its time.
    """

    def __init__(
        self,
        captioner: "Captioner | runtime.Captioner",
        source: CaptionerSource,
        *,
        actors: int,
        threads: int,
        owns_ray: bool,
    ) -> None:
        self._captioner, self._source, self._owns_ray = captioner, source, owns_ray
        self.actors, self.threads = actors, threads
        self.confidence = captioner.confidence

    @classmethod
    def from_pretrained(
        cls,
        checkpoint: str | os.PathLike = DEFAULT_CHECKPOINT,
        device: str | None = None,
        dtype: "torch.dtype | None" = None,
        *,
        actors: int | None = None,
        threads: int = 1,
    ) -> Self:
        """Connects to Ray, and loads a checkpoint or an export in this process.

        Ray is that which this process is connected to already, the cluster that the variable RAY_ADDRESS names, one
        that runs on this machine, or a new one on this machine.

        Args:
            checkpoint: A folder, an exported one too, or a Hub id.
            device: The device of each actor, such as "cpu"; "cuda" is a GPU of its own. By default a GPU, if Ray has
                any.
            dtype: The dtype of the weights; see `Captioner.from_pretrained`.
            actors: The number of actors. By default as many as Ray has room for.
            threads: The number of threads of each actor, which are the cores that Ray reserves for it.

        Raises:
            BackboneError, CheckpointError: The checkpoint or one of its towers cannot be loaded.
            ConfigError: Ray has no room for so many actors, the device cannot be used, or no cluster answers.
            MissingPackageError: Ray is not installed.
            RuntimeError: Ray does not start.
        """
        if device is not None and device.startswith("cuda:"):
            raise ConfigError(f"--device {device}: Ray gives each actor a GPU of its own: take --device cuda.")
        source = CaptionerSource(os.fspath(checkpoint), "cpu", dtype)
        captioner = source.load()
        owns_ray = open_ray()
        import ray

        try:
            if device is None and not source.is_export and ray.cluster_resources().get("GPU"):
                device = "cuda"
            gpus = int(device == "cuda")
            count = count_actors(actors, threads, gpus)
        except BaseException:
            if owns_ray:
                ray.shutdown()
            raise
        source = CaptionerSource(source.checkpoint, device, dtype)
        return cls(captioner, source, actors=count, threads=threads, owns_ray=owns_ray)

    @property
    def checkpoint(self) -> str:
        """An identifier of the weights; see `Captioner.checkpoint`."""
        return self._captioner.checkpoint

    @property
    def prompt(self) -> str:
        """The default prompt."""
        return self._captioner.prompt

    def caption_each(
        self, images: ImageSource | Iterable[ImageSource], *, batch_size: int = 8, **settings: Any
    ) -> Iterator[Caption | ImageError]:
        """Captions pictures in order.

        Args:
            images: What `open_image` takes, or an iterable of such. What is no path and no URL is sent to the actors.
            batch_size: The number of pictures at a time.
            **settings: The other arguments of [`caption_batches`].

        Yields:
            A picture's caption, or the ImageError that says why it has none; see `Captioner.caption_each`.

        Raises:
            ValueError, RuntimeError: See `caption_batches`.
        """
        return caption_one_by_one(partial(self.caption_batches, **settings), images, batch_size)

    def caption_batches(
        self, batches: Iterable[Sequence[ImageSource]], *, question: Question = None, **settings: Any
    ) -> Iterator[list[Result]]:
        """Captions batches of pictures that the caller has formed.

        Args:
            batches: The pictures that are captioned together, each batch a sequence. All are read at once.
            question: See `Captioner.caption_each`.
            **settings: The other arguments of `caption_batches` of the captioner.

        Yields:
            For each batch a list with an entry for each picture: its captions, or the ImageError that says why it has
            none.

        Raises:
            ImageError, ValueError: See `Captioner.caption_batches`.
            RuntimeError: An actor cannot load the captioner, or fails.
        """
        self._captioner.caption_batches([], question=question, **settings)  # says at once what is wrong
        batches = [list(batch) for batch in batches]
        questions = split_question(question, map(len, batches))
        work = [pickle.dumps(Work(batch, own)) for batch, own in zip(batches, questions, strict=True)]
        return self._run(work, settings) if work else iter(())

    def close(self) -> None:
        """Ends the actors, and Ray if it was started or joined for this captioner."""
        if self._owns_ray:
            import ray

            ray.shutdown()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _run(self, work: list[bytes], settings: dict[str, Any]) -> Iterator[list[Result]]:
        import ray.data
        from ray.exceptions import RayError

        job = f"vlm-caption-{uuid.uuid4().hex}"
        rows = [{"number": number, "work": each} for number, each in enumerate(work)]
        blocks = max(-(-len(rows) // _LARGEST_BLOCK), min(len(rows), _BLOCKS_AN_ACTOR * self.actors))
        data = ray.data.from_items(rows, override_num_blocks=blocks)
        del rows, work  # millions of names; Ray holds them
        data.context.execution_options.preserve_order = True
        data.context.enable_progress_bars = False
        captioned = data.map_batches(
            CaptionActor,
            batch_size=None,
            compute=ray.data.ActorPoolStrategy(size=self.actors, max_tasks_in_flight_per_actor=2),
            fn_constructor_kwargs={
                "source": self._source,
                "threads": self.threads,
                "has_confidence": self.confidence is not None,
                "folder": os.getcwd(),  # noqa: PTH109
                "job": job,
                "settings": settings,
            },
            num_cpus=self.threads,
            num_gpus=int(self._source.device == "cuda"),
            runtime_env={"env_vars": CaptionActor.environment(self.threads)},
        )
        try:
            for block in captioned.iter_batches(batch_size=None, batch_format="numpy"):
                for results in map(pickle.loads, block["results"]):
                    if isinstance(results, Exception):
                        raise results
                    yield results
        except RayError as error:
            raise RuntimeError(f"Ray has failed: {first_line_of(error)}: repeat the command.") from error
        finally:
            Deaths(job).clear()

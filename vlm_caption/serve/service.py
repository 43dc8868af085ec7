"""What a server does with pictures: it captions them and shows where the captioner looked, batch by batch."""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from ..captioning.caption import Caption
from ..core.errors import ImageError
from ..core.prompts import QUESTION
from .batcher import Batcher
from .limits import ServingLimits


@dataclass(frozen=True)
class Settings:
    """How a picture is captioned. Pictures of equal settings are captioned together.

    Attributes:
        prompt: The prompt, by default that of training.
        question: The text for the prompt's `{question}`.
        generation: Names and values of arguments of `Captioner.caption_each`.
    """

    prompt: str = ""
    question: str | None = None
    generation: tuple[tuple[str, Any], ...] = ()


@dataclass(frozen=True)
class Captioning:
    """Captions a batch of pictures; work for a `Batcher`. Its items are the bytes of their files.

    Attributes:
        captioner: A `vlm_caption.Captioner` or one of `vlm_caption.runtime`.
        settings: The settings of all pictures.
        max_pixels: The largest picture.
        on_text: Gets the texts so far after each token, the leading one first; called in the batcher's thread.
        key: Works with different keys are never done together.
    """

    captioner: Any
    settings: Settings
    max_pixels: int
    on_text: Callable[[list[str]], None] | None = None
    key: object = None

    def __call__(self, pictures: Sequence[bytes]) -> list[list[Caption] | ImageError]:
        """Returns the captions of each picture, or the error that says why it has none.

        Raises:
            ValueError: A setting is wrong.
        """
        generation = dict(self.settings.generation)
        if self.on_text is not None:
            from .watching import watch

            generation["stopping_criteria"] = watch(self.captioner.processor, self.on_text)
        [results] = self.captioner.caption_batches(
            [pictures],
            prompt=self.settings.prompt,
            question=self.settings.question,
            max_pixels=self.max_pixels,
            **generation,
        )
        return results


@dataclass(frozen=True, eq=False)  # each is a batch of its own: it takes long, and others wait
class Looking:
    """Computes heat maps; work for a `Batcher`. Its items are pictures, as the bytes of their files, with captions.

    Attributes:
        captioner: A `vlm_caption.Captioner`.
        settings: The settings with which the captions were written.
        max_pixels: The largest picture.
    """

    captioner: Any
    settings: Settings
    max_pixels: int

    def __call__(self, items: Sequence[tuple[bytes, str]]) -> list[Any]:
        """Returns a picture of each heat map, a Pillow image."""
        from ..captioning.attribution import heat_map, seen_box
        from ..images.opening import open_image
        from .overlay import draw_heat

        drawn = []
        for content, text in items:
            image = open_image(content, self.max_pixels)
            heat = heat_map(self.captioner, image, text, prompt=self.settings.prompt, question=self.settings.question)
            drawn.append(draw_heat(image.crop(seen_box(self.captioner, *image.size)), heat))
        return drawn


@dataclass
class Service:
    """A captioner, and the queue in front of it.

    Attributes:
        captioner: A `vlm_caption.Captioner` or one of `vlm_caption.runtime`.
        name: What the API calls it.
        limits: What is accepted.
        batch_size: The most pictures at a time.
        datastore: The folder of a datastore that helps to choose captions, or None; see `Captioner.caption_each`.
        batcher: The queue.
    """

    captioner: Any
    name: str
    limits: ServingLimits = field(default_factory=ServingLimits)
    batch_size: int = 8
    datastore: str | None = None
    batcher: Batcher = field(init=False)

    def __post_init__(self) -> None:
        self.batcher = Batcher(self.batch_size, self.limits.max_waiting)

    @property
    def asks(self) -> bool:
        """Whether the captioner was trained on questions, so that a user's text is one."""
        return QUESTION in self.captioner.prompt

    @property
    def is_exported(self) -> bool:
        """Whether the captioner is one of `vlm_caption.runtime`: it shows no text before its end, and no heat maps."""
        return not hasattr(self.captioner, "model")

    def settings(self, text: str, generation: dict[str, Any]) -> Settings:
        """Returns the settings for a user's text: a question if the captioner takes one, else the prompt.

        The datastore chooses among beams, so it is left out where others are asked for, or sampling.

        Args:
            text: The text; it may be empty.
            generation: Arguments of `Captioner.caption_each`.
        """
        if self.datastore is not None and "num_beams" not in generation:
            generation = generation | {"datastore": self.datastore}
        values = tuple(sorted(generation.items()))
        return Settings(question=text or None, generation=values) if self.asks else Settings(text, None, values)

    def caption(
        self, content: bytes, settings: Settings, on_text: Callable[[list[str]], None] | None = None
    ) -> Future:
        """Queues a picture, and returns the future of its captions, list[Caption].

        Args:
            content: The bytes of its file.
            settings: How it is captioned.
            on_text: Gets the texts so far after each token, the leading one first; called in the batcher's thread. A
                picture with it is captioned alone. An exported captioner calls it never.

        Raises:
            ServerBusyError, ServerClosedError: See `Batcher.submit`.
        """
        on_text = None if self.is_exported else on_text
        is_alone = on_text is not None or "seed" in dict(settings.generation)
        key = object() if is_alone else None
        work = Captioning(self.captioner, settings, self.limits.max_pixels, on_text, key)
        return self.batcher.submit(work, content)

    def look(self, content: bytes, text: str, settings: Settings) -> Future:
        """Queues a heat map, and returns the future of its picture, a Pillow image.

        Args:
            content: The bytes of the picture's file.
            text: The caption.
            settings: The settings with which it was written.

        Raises:
            ServerBusyError, ServerClosedError: See `Batcher.submit`.
        """
        return self.batcher.submit(Looking(self.captioner, settings, self.limits.max_pixels), (content, text))

"""Captions pictures batch by batch, whichever captioner writes the captions. Needs neither torch nor transformers."""

import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np
from PIL import Image

from ..core.errors import ImageError
from ..images.opening import ImageSource, describe, open_image
from ..images.pixels import is_tensor
from .caption import Caption
from .prompts import NOT_AS_MANY, Prompt

Pixels = TypeVar("Pixels")
Item = TypeVar("Item")

# A picture and its caption; or a picture, a question about it, and the answer.
Example = tuple[ImageSource, str] | tuple[ImageSource, str, str]


@dataclass(frozen=True)
class Limits:
    """The largest picture to open; see `open_image`.

    Raises:
        ValueError: A limit is below 1.
    """

    max_pixels: int
    max_bytes: int

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")

    def open(self, source: ImageSource) -> Image.Image:
        """Opens a picture within these limits; see `open_image`."""
        return open_image(source, self.max_pixels, self.max_bytes)


@dataclass(frozen=True)
class Input(Generic[Pixels]):
    """The inputs for a picture: its name, its prompts, and `pixel_values` float [1, 3, H, W]."""

    image: str
    prompts: list[Prompt]
    pixel_values: Pixels


def example_turns(examples: Sequence[Example]) -> list[tuple[str | None, str]]:
    """Returns the question of each example, if it has one, and its caption or answer.

    Raises:
        ValueError: An example has too few or too many parts, or one that is no text.
    """
    if any(len(example) not in (2, 3) or not isinstance(example[-1], str) for example in examples):
        raise ValueError("An example is a picture and its caption, or a picture, a question and its answer.")
    return [(rest[0] if len(rest) == 2 else None, rest[-1]) for _, *rest in examples]


def caption_in_batches(
    batches: Iterable[Sequence[ImageSource]],
    prompts: Iterable[list[Prompt]],
    limits: Limits,
    to_pixels: Callable[[Image.Image], Pixels],
    write: Callable[[list[Input[Pixels]]], Sequence[list[Caption] | ImageError]],
) -> Iterator[list[list[Caption] | ImageError]]:
    """Captions batches of pictures, without those that cannot be opened.

    Args:
        batches: The pictures that are captioned together, each batch a sequence.
        prompts: The prompts of each picture, as `encode_prompts` returns them.
        limits: The largest picture to open.
        to_pixels: Turns a picture into the vision tower's input.
        write: Writes the captions of a batch that is not empty.

    Yields:
        For each batch a list with an entry for each picture: its captions, or the ImageError that says why it has
        none.

    Raises:
        ValueError: There are not as many prompts as pictures.
    """
    left = iter(prompts)
    for batch in batches:
        asked = list(itertools.islice(left, len(batch)))
        if len(asked) < len(batch):
            raise ValueError(NOT_AS_MANY)
        entries = [_open(source, own, limits, to_pixels) for source, own in zip(batch, asked, strict=True)]
        inputs = [entry for entry in entries if isinstance(entry, Input)]
        captions = iter(write(inputs) if inputs else [])
        yield [next(captions) if isinstance(entry, Input) else entry for entry in entries]
    if not isinstance(prompts, itertools.repeat) and next(left, None) is not None:
        raise ValueError(NOT_AS_MANY)


def _open(
    source: ImageSource, prompts: list[Prompt], limits: Limits, to_pixels: Callable[[Image.Image], Pixels]
) -> Input[Pixels] | ImageError:
    # One picture at a time, so that only one is held in full size.
    try:
        return Input(describe(source), prompts, to_pixels(limits.open(source)))
    except ImageError as error:
        return error.detached()
    except OSError as error:  # the disk or the network fails while the file is read
        return ImageError(describe(source), f"the file cannot be read ({error.strerror or error})")
    except MemoryError:
        return ImageError(describe(source), "the picture needs more memory than there is: scale it down")


def as_iterable(images: Any) -> Iterable[ImageSource]:
    """Returns pictures as they are, and a single one as a list."""
    is_one = isinstance(images, (str, os.PathLike, bytes, Image.Image, np.ndarray)) or is_tensor(images)
    return [images] if is_one or hasattr(images, "read") else images


def check_batch_size(batch_size: int) -> None:
    """Checks a number of inputs.

    Raises:
        ValueError: It is below 1.
    """
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}.")


def batched(items: Iterable[Item], size: int) -> Iterator[list[Item]]:
    """Yields items in lists of a size, the last one maybe shorter."""
    remaining = iter(items)
    return iter(lambda: list(itertools.islice(remaining, size)), [])


def flatten(results: Iterable[list[Caption] | ImageError]) -> Iterator[Caption | ImageError]:
    """Yields the captions of each picture, or its error."""
    for result in results:
        yield from [result] if isinstance(result, ImageError) else result


def caption_one_by_one(
    caption_batches: Callable[[Iterable[Sequence[ImageSource]]], Iterator[list[list[Caption] | ImageError]]],
    images: Any,
    batch_size: int,
) -> Iterator[Caption | ImageError]:
    """Yields the captions of each picture, or its error, one batch after the other.

    Args:
        caption_batches: Captions batches of pictures, such as what `caption_in_batches` is called by.
        images: One picture or several.
        batch_size: The number of pictures at a time.

    Raises:
        ValueError: `batch_size` is below 1. It is raised at once.
    """
    check_batch_size(batch_size)
    batches = caption_batches(batched(as_iterable(images), batch_size))
    return flatten(result for batch in batches for result in batch)


def captions_only(results: Iterable[Caption | ImageError]) -> list[Caption]:
    """Returns the captions.

    Raises:
        ImageError: The first error among the results.
    """
    captions = []
    for result in results:
        if isinstance(result, ImageError):
            raise result
        captions.append(result)
    return captions

"""The numbers of a split, or of a whole corpus."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Spread:
    """The least, the mean, the median and the greatest of some numbers."""

    min: float
    mean: float
    median: float
    max: float

    @classmethod
    def of(cls, values: np.ndarray) -> "Spread | None":
        """Returns the spread of an array; None if it is empty."""
        if not values.size:
            return None
        return cls(values.min().item(), values.mean().item(), float(np.median(values)), values.max().item())

    def __str__(self) -> str:
        return f"{self.min:,g}" if self.min == self.max else f"{self.min:,g} / {self.mean:,.1f} / {self.max:,g}"


@dataclass(frozen=True)
class Facts:
    """The numbers of a split, or of all.

    Attributes:
        images: How many there are, unreadable ones among them and missing ones not.
        missing, unreadable: How many of the corpus's images.
        captions: How many they have.
        different_captions: How many of these are different texts.
        captions_per_image: How many images have so many captions, by that number.
        words, tokens: Of the captions. Tokens are the language model's, with the prompt's space and the end token;
            None where there is no tokenizer.
        too_long: Captions that `data.max_caption_tokens` would cut.
        width, height: Of the images that can be opened, in pixels.
    """

    images: int
    missing: int
    unreadable: int
    captions: int
    different_captions: int
    captions_per_image: dict[int, int]
    words: Spread | None
    tokens: Spread | None
    too_long: int | None
    width: Spread | None
    height: Spread | None

"""Keeps captions that are not sure enough in a file of their own, for somebody to look at."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from .writers import OutputFile

if TYPE_CHECKING:
    from .caption import Caption


class Review:
    """The captions of pictures one of whose captions has a confidence below a minimum.

    Args:
        output: Where these captions go.
        minimum: The lowest confidence that is sure enough.
    """

    def __init__(self, output: OutputFile, minimum: float) -> None:
        self.output, self.minimum = output, minimum

    @property
    def count(self) -> int:
        """How many pictures the file has, those of earlier jobs included."""
        return len(self.output.names)

    def has(self, name: str) -> bool:
        """Returns whether a picture has its captions in the file; see [`Writer`]."""
        return self.output.has(name)

    def keep_unsure(self, captions: "Sequence[Caption]") -> "list[Caption]":
        """Writes the captions of pictures that are not sure enough, and returns the others.

        A picture that is in the file already is left out of both.

        Args:
            captions: Captions with a confidence, all of each picture.

        Raises:
            DataError: They cannot be written.
        """
        unsure = {
            caption.image
            for caption in captions
            if caption.confidence is not None and caption.confidence < self.minimum
        }
        reviewed = {caption.image for caption in captions if self.has(caption.image)}
        self.output.add([caption for caption in captions if caption.image in unsure - reviewed])
        return [caption for caption in captions if caption.image not in unsure | reviewed]

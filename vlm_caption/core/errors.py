"""Every error that this package raises for a user to read: the message is one sentence that says what to do."""

from typing import Self


class ImageError(ValueError):
    """A picture cannot be opened: `source` says which one, `reason` why and what to do."""

    def __init__(self, source: str, reason: str) -> None:
        # Both go to ValueError as they are: a worker process pickles the error as its class and its arguments.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"

    def detached(self) -> Self:
        """This error without its traceback and its causes, which hold on to the half-decoded picture."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class ImageNotFoundError(ImageError):
    """There is no such file, or no picture in the folder."""


class ImageFetchError(ImageError):
    """The picture cannot be had from its URL: no answer in time, another one than the picture, too many redirects."""


class NotAnImageError(ImageError):
    """There is something, and it is no picture: text, a web page, an empty file, a folder."""


class TruncatedImageError(ImageError):
    """The picture is cut short or damaged."""


class ImageTooLargeError(ImageError):
    """The picture has more pixels, or its file more bytes, than allowed."""


class UnsupportedImageError(ImageError):
    """The picture is of a kind that is not read: SVG, HEIC without its plug-in, an array out of range."""


class ConfigError(ValueError):
    """A setting that is unknown, out of range or of the wrong kind; the message names it and says what to do."""


class DataError(ValueError):
    """Captioned images cannot be read: the message names the file and says what to do."""


class BackboneError(RuntimeError):
    """A tower cannot be had; the message is one sentence that names it and says what to do."""


class CheckpointError(BackboneError):
    """A checkpoint cannot be loaded; the message is one sentence that names it and says what is wrong."""


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; the message names the extra."""


class ScorerMissingError(RuntimeError):
    """A metric cannot be computed here; the message says what it needs."""


__all__ = [
    "BackboneError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageError",
    "ImageFetchError",
    "ImageNotFoundError",
    "ImageTooLargeError",
    "MissingPackageError",
    "NotAnImageError",
    "ScorerMissingError",
    "TruncatedImageError",
    "UnsupportedImageError",
]

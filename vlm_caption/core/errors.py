"""The errors that this package raises for users. Each message is one sentence that says what to do."""

from typing import Self


class ImageError(ValueError):
    """An image cannot be opened.

    Attributes:
        source: The name of the image.
        reason: Why it cannot be opened, and what to do.
    """

    def __init__(self, source: str, reason: str) -> None:
        # Both are passed on unchanged, because a worker process pickles an error as its class and its arguments.
        super().__init__(source, reason)
        self.source = source
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.source}: {self.reason}"

    def detached(self) -> Self:
        """Returns this error without its traceback and causes, which keep the half-decoded image in memory."""
        self.__cause__ = self.__context__ = None
        return self.with_traceback(None)


class ImageNotFoundError(ImageError):
    """The file does not exist, or the folder contains no image."""


class ImageFetchError(ImageError):
    """The image cannot be downloaded, for example because the server does not answer or sends something else."""


class NotAnImageError(ImageError):
    """The source is not an image, for example text, a web page, an empty file or a folder."""


class TruncatedImageError(ImageError):
    """The image is truncated or damaged."""


class ImageTooLargeError(ImageError):
    """The image has more pixels, or its file more bytes, than allowed."""


class UnsupportedImageError(ImageError):
    """The kind of image is not supported, for example SVG, HEIC without its plug-in, or an array out of range."""


class ConfigError(ValueError):
    """A setting is unknown, out of range or of the wrong type; the message names it."""


class DataError(ValueError):
    """Captioned images cannot be read; the message names the file."""


class BackboneError(RuntimeError):
    """A tower cannot be found, downloaded or loaded; the message names it."""


class CheckpointError(BackboneError):
    """A checkpoint cannot be loaded; the message names it."""


class MissingPackageError(ModuleNotFoundError):
    """A package of an extra is not installed; the message names the extra."""


class ScorerMissingError(RuntimeError):
    """A metric cannot be computed on this machine; the message says what it needs."""


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

"""Identifies images by their content: the SHA-256 of their encoded bytes, whatever their names."""

import hashlib
from collections.abc import Sequence

import numpy as np

from ..core.console import progress
from ..core.errors import ImageError
from ..core.threads import map_in_threads
from ..data.places import Place
from ..images.limits import MAX_BYTES

DIGEST_SIZE = 32  # bytes

_FEW = 10_000  # so many images are read within seconds, without showing progress


def content_digest(image: str, max_bytes: int = MAX_BYTES) -> bytes:
    """Returns the SHA-256 of the encoded bytes of an image, an entry of a dataset's column `image`.

    Raises:
        ImageError: The bytes cannot be read, or are more than `max_bytes`.
    """
    return hashlib.sha256(Place.parse(image).read(max_bytes)).digest()


def content_digests(images: Sequence[str], max_bytes: int = MAX_BYTES) -> tuple[np.ndarray, dict[int, ImageError]]:
    """Reads images and returns their digests.

    Args:
        images: Entries of a dataset's column `image`.
        max_bytes: An image with more bytes is an error.

    Returns:
        The digests, uint8 [len(images), 32], and the error of each image that cannot be read, by its index. The
        digests of these images are zeros.
    """

    def digest(image: str) -> bytes | ImageError:
        try:
            return content_digest(image, max_bytes)
        except (ImageError, OSError, MemoryError) as error:
            return as_image_error(image, error)

    digests = np.zeros((len(images), DIGEST_SIZE), dtype=np.uint8)
    errors: dict[int, ImageError] = {}
    found = map_in_threads(digest, images)
    for index, result in enumerate(progress(found, len(images), "reading images") if len(images) > _FEW else found):
        if isinstance(result, ImageError):
            errors[index] = result
        else:
            digests[index] = np.frombuffer(result, dtype=np.uint8)
    return digests, errors


def as_image_error(image: str, error: ImageError | OSError | MemoryError) -> ImageError:
    """Returns the error of one image, so that a failing disk or too little memory costs this image and no other."""
    if isinstance(error, ImageError):
        return error.detached()
    if isinstance(error, MemoryError):
        reason = "the picture needs more memory than there is"
    else:
        reason = f"the file cannot be read ({error.strerror or error})"
    return ImageError(Place.parse(image).described, reason)

"""What an image is, whatever its name: the SHA-256 of its encoded bytes, remembered so that a file is read once.

An image's place, the size of the file and its times of change go into a small SQLite file with the digest: while they
stay the same, the file is not read again.
"""

import contextlib
import dataclasses
import hashlib
import logging
import os
import sqlite3
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from ..core.console import progress
from ..core.errors import DataError, ImageError
from ..data.places import Place
from ..images.opening import MAX_BYTES

logger = logging.getLogger(__name__)

DIGEST_SIZE = 32  # bytes

_TABLE = (
    "CREATE TABLE IF NOT EXISTS contents "
    "(place BLOB PRIMARY KEY, size INTEGER, modified INTEGER, changed INTEGER, digest BLOB) WITHOUT ROWID"
)
_SLICE = 10_000  # images looked up, read and remembered at a time

# A file that changed this short a while ago may change again without its time showing it.
_SETTLED_NS = 2_000_000_000


def content_digest(image: str, max_bytes: int = MAX_BYTES) -> bytes:
    """SHA-256 of the encoded bytes of an entry of a dataset's column `image`.

    Raises:
        ImageError: if they cannot be read, or are more than `max_bytes`.
    """
    return hashlib.sha256(Place.parse(image).read(max_bytes)).digest()


def content_digests(
    images: Sequence[str], memory: Path, max_bytes: int = MAX_BYTES
) -> tuple[np.ndarray, dict[int, ImageError]]:
    """The digests of many images, reading only files that are not remembered as they are now.

    Args:
        images: entries of a dataset's column `image`.
        memory: the SQLite file; made where there is none, and made anew where it is damaged.
        max_bytes: an image of more is an error.

    Returns:
        the digests, uint8 [len(images), 32]; and the error of each image that cannot be read, by its index. Their
        digests are zeros.

    Raises:
        DataError: if `memory` cannot be written, or read.
    """
    digests = np.zeros((len(images), DIGEST_SIZE), dtype=np.uint8)
    errors: dict[int, ImageError] = {}
    starts: Sequence[int] = range(0, len(images), _SLICE)
    with contextlib.closing(_open(memory)) as connection, ThreadPoolExecutor() as readers:
        for start in progress(starts, desc=f"image contents, {_SLICE:,} each") if len(starts) > 1 else starts:
            try:
                found = _digest_slice(list(images[start : start + _SLICE]), connection, readers, max_bytes)
            except sqlite3.Error as error:
                raise DataError(
                    f"{memory}: cannot be read ({error}): see that no other program holds it, or remove it, and the "
                    "images are read again."
                ) from error
            for index, digest in enumerate(found, start):
                if isinstance(digest, ImageError):
                    errors[index] = digest
                else:
                    digests[index] = np.frombuffer(digest, dtype=np.uint8)
    return digests, errors


def _digest_slice(
    images: list[str], connection: sqlite3.Connection, readers: ThreadPoolExecutor, max_bytes: int
) -> list[bytes | ImageError]:
    keys = [_key(image) for image in images]
    found: list[bytes | ImageError | None] = [None] * len(images)
    for index, key in enumerate(keys):
        row = (
            key
            and connection.execute(
                "SELECT digest FROM contents WHERE place = ? AND size = ? AND modified = ? AND changed = ?", key
            ).fetchone()
        )
        found[index] = row[0] if row else None
    unread = [index for index, digest in enumerate(found) if digest is None]
    now = time.time_ns()
    digests = readers.map(lambda index: _try_digest(images[index], max_bytes), unread)
    for index, digest in zip(unread, digests, strict=True):
        found[index] = digest
    learnt = [
        (*key, digest)
        for key, digest in ((keys[index], found[index]) for index in unread)
        if key and isinstance(digest, bytes) and max(key[2:]) < now - _SETTLED_NS
    ]
    try:
        with connection:
            connection.executemany("INSERT OR REPLACE INTO contents VALUES (?, ?, ?, ?, ?)", learnt)
    except sqlite3.DatabaseError as error:  # a full disk, a lock that is never given back
        logger.warning("The contents of %d images are not remembered (%s)", len(learnt), error)
    return found  # ty: ignore[invalid-explicit-return]


def _key(image: str) -> tuple[bytes, int, int, int] | None:
    """An image's absolute place and what the file system says of its file; None where there is no file."""
    place = Place.parse(image)
    try:
        status = os.stat(place.path)  # noqa: PTH116 - a million of them
    except (OSError, ValueError):
        return None
    absolute = dataclasses.replace(place, path=os.path.abspath(place.path))  # noqa: PTH100 - links kept
    return os.fsencode(str(absolute)), status.st_size, status.st_mtime_ns, status.st_ctime_ns


def _try_digest(image: str, max_bytes: int) -> bytes | ImageError:
    try:
        return content_digest(image, max_bytes)
    except ImageError as error:
        return error


def _open(memory: Path) -> sqlite3.Connection:
    try:
        memory.parent.mkdir(parents=True, exist_ok=True)
        try:
            return _connect(memory)
        except sqlite3.OperationalError:
            raise
        except sqlite3.DatabaseError as error:
            logger.warning("%s is damaged (%s): removed, and the images are read again", memory, error)
            memory.unlink()
            return _connect(memory)
    except (OSError, sqlite3.OperationalError) as error:
        raise DataError(
            f"{memory}: cannot be written ({error}): set VLM_CAPTION_CACHE to a folder that can, or "
            "training.cache_features to false."
        ) from error


def _connect(memory: Path) -> sqlite3.Connection:
    connection = sqlite3.connect(memory, timeout=60)
    try:
        connection.execute(_TABLE)
        connection.execute("SELECT count(*) FROM contents WHERE place = x''")  # reads a page of it
    except sqlite3.Error:
        connection.close()
        raise
    return connection

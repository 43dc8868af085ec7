"""Identifies weights and files by their content."""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

import xxhash

if TYPE_CHECKING:
    import torch

# The checksums of files that this process has read, by their path, inode, size and time of change.
_checksums: dict[tuple[Path, int, int, int], str] = {}


def checksum_file(path: Path) -> str:
    """Returns the XXH3 of a file's bytes: 128 bits in hex. It detects damage, and is no protection from an attack.

    A file that does not change is read once per process.

    Raises:
        OSError: The file cannot be read.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        identity = (path.absolute(), status.st_ino, status.st_size, status.st_mtime_ns)
        if identity not in _checksums:
            _checksums[identity] = hashlib.file_digest(file, xxhash.xxh3_128).hexdigest()
        return _checksums[identity]


def digest_tensors(tensors: Iterable[tuple[str, "torch.Tensor"]]) -> "hashlib._Hash":
    """Returns the SHA-256 of named tensors: of their names, dtypes, shapes and bytes.

    Args:
        tensors: Names and tensors of any dtype, on any device. They are hashed in the order of their names.

    Returns:
        The hash object, which more can be added to.
    """
    import torch

    digest = hashlib.sha256()
    for name, tensor in sorted(tensors, key=lambda item: item[0]):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest

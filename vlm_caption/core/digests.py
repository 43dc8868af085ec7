"""Identifies weights by their content."""

import hashlib
import json
from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


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

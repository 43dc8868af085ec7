"""Features of images in files: shards that are whole, checked and mapped into memory.

A folder holds the features of one setting (one tower, one preprocessing, one choice of tokens). Each of its shards is
a safetensors file of `features`, [n, N, D], and `keys`, uint8 [n, 32], the SHA-256 of each image's content. The file's
name is its own checksum, XXH3 of 128 bits, so a shard and its checksum come into being in one step. Nothing refers to
a data set: images are found by their content, and data sets share what they have in common.
"""

import json
import logging
import mmap
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..core.errors import DataError
from ..core.files import write_bytes

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
SETTING_NAME = "setting.json"
_PARTIAL = ".partial"
_SECONDS_TO_WRITE = 3600.0  # a partial file older than this was left by a process that was killed

# Shards whose checksum was found right in this run: path, size and time of change.
_verified: set[tuple[Path, int, int]] = set()


class FeatureTable:
    """The features of a list of images, memory-mapped: a batch copies its own rows and nothing else.

    `table[[4, 0]]` and `table[2:8]` are tensors [rows, N, D]; `table[:]` reads all.

    Attributes:
        shape: (images, N, D).
        dtype: of the features.
    """

    def __init__(self, shards: Sequence[torch.Tensor], places: np.ndarray, row_shape: tuple[int, int], dtype):
        """
        Args:
            shards: the features in each shard, [n, N, D].
            places: int64 [images, 2], the shard and the row of each image's features; −1 where it has none.
            row_shape: N and D.
            dtype: of the features.
        """
        self._shards, self._places = shards, places
        self.shape, self.dtype = (len(places), *row_shape), dtype

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Sequence[int] | slice) -> torch.Tensor:
        places = self._places[rows]
        out = torch.empty(len(places), *self.shape[1:], dtype=self.dtype)
        for i, (shard, row) in enumerate(places.tolist()):
            if shard < 0:
                raise ValueError("An image that could not be opened has no features: leave its row out.")
            out[i] = self._shards[shard][row]
        return out


class FeatureShards:
    """The shards of one setting, in a folder of their own. Damaged ones are told of and removed when they are met.

    Raises:
        DataError: if the folder cannot be made or read.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._files: dict[Path, torch.Tensor] = {}
        self._keys: list[np.ndarray] = []  # S32 [n] of each file, in its order
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for left in directory.glob(f"*{_PARTIAL}"):
                if left.stat().st_mtime < time.time() - _SECONDS_TO_WRITE:
                    left.unlink(missing_ok=True)
        except OSError as error:
            raise DataError(_unwritable(directory, error)) from error
        self.refresh()

    def refresh(self) -> None:
        """Opens the shards that were written since.

        Raises:
            DataError: if one cannot be read, or a damaged one cannot be removed.
        """
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            if path in self._files:
                continue
            try:
                keys, features = _open_shard(path)
            except FileNotFoundError:  # another process found it damaged
                continue
            except OSError as error:  # says nothing of what is in it, which may be days of work
                raise DataError(
                    f"{path}: these image features cannot be read ({error.strerror or error}): see that it may be "
                    "read, or set VLM_CAPTION_CACHE to another folder."
                ) from error
            except (ValueError, KeyError, SafetensorError) as error:
                logger.warning("%s is damaged (%s): removed, and its images are computed again", path, error)
                try:
                    path.unlink(missing_ok=True)
                except OSError as refusal:
                    raise DataError(_unwritable(self.directory, refusal)) from refusal
                continue
            self._files[path] = features
            self._keys.append(keys)

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Where the features of images are.

        Args:
            keys: uint8 [images, 32].

        Returns:
            int64 [images, 2], the shard and the row in it; −1, −1 for those that are not there.
        """
        places = np.full((len(keys), 2), -1, dtype=np.int64)
        if not self._keys or not len(keys):
            return places
        known = np.concatenate(self._keys)
        sizes = [len(shard) for shard in self._keys]
        of_shard = np.repeat(np.arange(len(sizes)), sizes)
        of_row = np.concatenate([np.arange(size) for size in sizes])
        order = np.argsort(known, kind="stable")
        wanted = _as_strings(keys)
        at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
        found = order[at]
        hit = known[found] == wanted
        places[hit, 0], places[hit, 1] = of_shard[found[hit]], of_row[found[hit]]
        return places

    def table(self, places: np.ndarray, row_shape: tuple[int, int], dtype: torch.dtype) -> FeatureTable:
        """The images at these places of `find`, as one table."""
        return FeatureTable(list(self._files.values()), places, row_shape, dtype)

    def write(self, keys: np.ndarray, features: torch.Tensor) -> None:
        """Writes a shard, whole or not at all.

        Args:
            keys: uint8 [n, 32].
            features: [n, N, D].

        Raises:
            DataError: if it cannot be written.
        """
        content = save({"features": features.contiguous(), "keys": torch.from_numpy(keys)})
        self._put(f"{xxhash.xxh3_128_hexdigest(content)}{SUFFIX}", content)

    def describe(self, setting: dict[str, Any]) -> None:
        """Writes down, for people, what the folder is for. Nothing reads it.

        Raises:
            DataError: if it cannot be written.
        """
        self._put(SETTING_NAME, json.dumps(setting, indent=2, sort_keys=True, default=str).encode())

    def _put(self, name: str, content: bytes) -> None:
        try:
            write_bytes(self.directory / name, content)
        except OSError as error:
            raise DataError(_unwritable(self.directory, error)) from error


def _open_shard(path: Path) -> tuple[np.ndarray, torch.Tensor]:
    """A shard's keys, S32 [n], and its features, [n, N, D], mapped into memory.

    Raises:
        OSError: It is gone, or cannot be read.
        ValueError, KeyError, SafetensorError: It is not what it was when it was written.
    """
    with path.open("rb") as file:
        status = os.fstat(file.fileno())
        identity = (path, status.st_size, status.st_mtime_ns)
        if identity not in _verified:
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
                if xxhash.xxh3_128_hexdigest(content) != path.stem:
                    raise ValueError("its checksum differs")
            _verified.add(identity)
    with safe_open(path, framework="pt") as shard:
        return _as_strings(shard.get_tensor("keys").numpy().copy()), shard.get_tensor("features")


def _as_strings(keys: np.ndarray) -> np.ndarray:
    # Of one length all, so that it does not matter that NumPy's strings are blind to zeros at their end.
    return np.ascontiguousarray(keys).view(f"S{keys.shape[1]}").reshape(-1)


def _unwritable(directory: Path, error: OSError) -> str:
    return (
        f"{directory}: image features cannot be kept there ({error.strerror or error}): make room, set "
        "VLM_CAPTION_CACHE to another folder, or training.cache_features to false."
    )

"""Features of images in files: shards that are written whole, checked, and mapped into memory.

A folder holds the features of one setting (one tower, one preprocessing, one choice of tokens). Each of its shards is
a safetensors file of `features`, [n, N, D], and `keys`, uint8 [n, 32], the SHA-256 of each image's content. The file's
name is its own checksum, XXH3 of 128 bits, so that a shard and its checksum are written in one step. Shards do not
refer to a data set: images are found by their content, and data sets share the images that they have in common.
"""

import contextlib
import json
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from ..core.digests import checksum_file
from ..core.errors import DataError
from ..core.files import write_bytes

logger = logging.getLogger(__name__)

SUFFIX = ".safetensors"
SETTING_NAME = "setting.json"
_PARTIAL = ".partial"
_SECONDS_TO_WRITE = 3600.0  # a partial file older than this was left by a process that was killed

Result = TypeVar("Result")


class FeatureTable:
    """The features of a list of images, mapped into memory: a batch copies its own rows and nothing else.

    `table[[4, 0]]` and `table[2:8]` are tensors [rows, N, D]; `table[:]` reads all.

    Attributes:
        shape: (images, N, D).
        dtype: The dtype of the features.
    """

    def __init__(
        self, shards: Mapping[int, torch.Tensor], places: np.ndarray, row_shape: tuple[int, int], dtype: torch.dtype
    ):
        """Makes a table of rows in shards.

        Args:
            shards: The features in each shard, [n, N, D], by the shard's number.
            places: int64 [images, 2], the shard and the row of each image's features; −1 for an image without.
            row_shape: N and D.
            dtype: The dtype of the features.
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
    """The shards of one setting, in a folder of their own.

    Shards are checked when an image is found in them, and all of them when an image is found in none. A damaged one is
    named in a warning and removed.

    Raises:
        DataError: The folder cannot be made or read.
    """

    def __init__(self, directory: Path):
        self.directory = directory
        self._keys: dict[Path, np.ndarray] = {}  # S32 [n] for each file
        try:
            directory.mkdir(parents=True, exist_ok=True)
            for left in directory.glob(f"*{_PARTIAL}"):
                with contextlib.suppress(FileNotFoundError):  # another process cleared it away
                    if left.stat().st_mtime < time.time() - _SECONDS_TO_WRITE:
                        left.unlink()
        except OSError as error:
            raise DataError(_unwritable(directory, error)) from error
        self.refresh()

    def refresh(self) -> None:
        """Opens the shards that were written since the last call.

        Raises:
            DataError: A shard cannot be read, or a damaged one cannot be removed.
        """
        for path in sorted(self.directory.glob(f"*{SUFFIX}")):
            if path not in self._keys and (shard := self._read(path, _open_shard)) is not None:
                self._keys[path] = shard[0]

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Finds the features of images.

        Args:
            keys: uint8 [images, 32].

        Returns:
            int64 [images, 2], the shard and the row in it; −1, −1 for images that have no features here.

        Raises:
            DataError: A shard cannot be read, or a damaged one cannot be removed.
        """
        while True:
            places = self._look_up(keys)
            paths = list(self._keys)
            if (places >= 0).all():
                paths = [paths[shard] for shard in np.unique(places[:, 0])]
            damaged = [path for path in paths if self._read(path, _check_shard) is None]
            if not damaged:
                return places
            for path in damaged:
                del self._keys[path]

    def _look_up(self, keys: np.ndarray) -> np.ndarray:
        places = np.full((len(keys), 2), -1, dtype=np.int64)
        if not self._keys or not len(keys):
            return places
        known = np.concatenate(list(self._keys.values()))
        sizes = [len(shard_keys) for shard_keys in self._keys.values()]
        of_shard = np.repeat(np.arange(len(sizes)), sizes)
        of_row = np.concatenate([np.arange(size) for size in sizes])
        order = np.argsort(known, kind="stable")
        wanted = _as_strings(keys)
        at = np.minimum(np.searchsorted(known, wanted, sorter=order), len(known) - 1)
        found = order[at]
        hit = known[found] == wanted
        places[hit, 0], places[hit, 1] = of_shard[found[hit]], of_row[found[hit]]
        return places

    def _read(self, path: Path, function: Callable[[Path], Result]) -> Result | None:
        """Returns what a function reads from a shard; None if the shard is not there, or damaged and now removed."""
        try:
            return function(path)
        except FileNotFoundError:  # another process found it damaged
            return None
        except OSError as error:  # the content, which may be days of work, can still be right
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
            return None

    def table(self, places: np.ndarray, row_shape: tuple[int, int], dtype: torch.dtype) -> FeatureTable:
        """Returns the features at these places of `find` as a table.

        Raises:
            DataError: A shard cannot be read, or was removed since `find`.
        """
        # Features are mapped after `find` has checked their shard: a file that is whole is not replaced by another.
        paths, shards = list(self._keys), {}
        for number in np.unique(places[places >= 0].reshape(-1, 2)[:, 0]).tolist():
            if (shard := self._read(paths[number], _open_shard)) is None:
                raise DataError(f"{paths[number]}: these image features were removed while they were in use.")
            shards[number] = shard[1]
        return FeatureTable(shards, places, row_shape, dtype)

    def write(self, keys: np.ndarray, features: torch.Tensor) -> None:
        """Writes a shard, whole or not at all.

        Args:
            keys: uint8 [n, 32].
            features: [n, N, D].

        Raises:
            DataError: The shard cannot be written.
        """
        content = save({"features": features.contiguous(), "keys": torch.from_numpy(keys)})
        self._put(f"{xxhash.xxh3_128_hexdigest(content)}{SUFFIX}", content)

    def describe(self, setting: dict[str, Any]) -> None:
        """Writes a description of the folder for people. No code reads it.

        Raises:
            DataError: The file cannot be written.
        """
        self._put(SETTING_NAME, json.dumps(setting, indent=2, sort_keys=True, default=str).encode())

    def _put(self, name: str, content: bytes) -> None:
        try:
            write_bytes(self.directory / name, content)
        except OSError as error:
            raise DataError(_unwritable(self.directory, error)) from error


def _open_shard(path: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Returns a shard's keys, S32 [n], and its features, [n, N, D], mapped into memory.

    Raises:
        OSError: The file is not there, or cannot be read.
        ValueError, KeyError, SafetensorError: It is no shard.
    """
    with path.open("rb"):  # safetensors raises the same error for an unreadable file and for a damaged one
        pass
    with safe_open(path, framework="pt") as shard:
        return _as_strings(shard.get_tensor("keys").numpy().copy()), shard.get_tensor("features")


def _check_shard(path: Path) -> bool:
    """Returns True for a whole shard.

    Raises:
        OSError: The file is not there, or cannot be read.
        ValueError: It has changed since it was written.
    """
    if checksum_file(path) != path.stem:
        raise ValueError("its checksum differs")
    return True


def _as_strings(keys: np.ndarray) -> np.ndarray:
    # NumPy's strings ignore zeros at their end, which does not matter because all keys have the same length.
    return np.ascontiguousarray(keys).view(f"S{keys.shape[1]}").reshape(-1)


def _unwritable(directory: Path, error: OSError) -> str:
    return (
        f"{directory}: image features cannot be kept there ({error.strerror or error}): make room, set "
        "VLM_CAPTION_CACHE to another folder, or training.cache_features to false."
    )

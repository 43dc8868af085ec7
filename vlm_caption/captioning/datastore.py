"""Captioned pictures whose captions help to choose among those written for a picture: retrieval without training.

Of the captions that the model writes for a picture, the one is kept that agrees most with the captions of the pictures
most like it (Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning", arXiv:1505.04467). The
pictures come from a datastore, which users can replace with one of their own, as in SmallCap (Ramos et al. 2023,
arXiv:2209.15323).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ..core.errors import DataError
from ..core.files import write_bytes
from ..core.shipped import shipped
from .consensus import FREQUENCIES_NAME, DocumentFrequencies

DATASTORE_NAME = "datastore.safetensors"

# What comes with the package, by name.
SHIPPED_DATASTORES = {"coco": "checkpoints/coco-datastore"}

# How many pictures' captions are compared with, and how many captions are written to choose from.
NEIGHBOURS, CANDIDATES = 20, 8

# So many are looked at together, so that memory does not grow with the datastore.
PICTURES_AT_A_TIME = 4_096

_TENSORS = ("vectors", "mean", "text", "caption_ends", "picture_ends")


@dataclass(frozen=True)
class VectorKind:
    """What a captioner's vectors of pictures are. Only vectors of the same kind can be compared.

    Attributes:
        tower: The fingerprint of the vision tower; "" if it is unknown.
        origin: Which of its outputs they are, in words; "" if that is unknown.
        size: The number of numbers, D.
    """

    tower: str
    origin: str
    size: int


class _Rows:
    """A tensor in a file, whose rows are read when they are asked for."""

    def __init__(self, tensor: Any) -> None:
        self._slice = tensor  # what `get_slice` of safetensors returns, which keeps the file mapped
        self.shape = tuple(tensor.get_shape())

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> np.ndarray:
        start, stop, _ = rows.indices(len(self))  # safetensors refuses to read behind the end
        return self._slice[start:stop]

    def __array__(self, dtype: type | None = None, copy: bool | None = None) -> np.ndarray:
        return np.asarray(self[:], dtype)


@dataclass(frozen=True)
class Datastore:
    """Captioned pictures, which are found by their vectors. Vectors and captions stay in the file until they are read.

    Attributes:
        vectors: A vector of length 1 for each picture, float16 [I, D].
        mean: What was subtracted from the vectors first, float32 [D].
        text: All captions in UTF-8, one after the other; uint8 [bytes].
        caption_ends: Where each caption ends in `text`, int64 [C].
        picture_ends: The number of captions up to and including those of each picture, int64 [I].
        frequencies: In how many pictures' captions each n-gram occurs.
        kind: What the vectors are.
    """

    vectors: np.ndarray | _Rows
    mean: np.ndarray
    text: np.ndarray | _Rows
    caption_ends: np.ndarray
    picture_ends: np.ndarray
    frequencies: DocumentFrequencies
    kind: VectorKind

    @classmethod
    def build(cls, vectors: np.ndarray, captions: Sequence[Sequence[str]], kind: VectorKind) -> "Datastore":
        """Makes a datastore of captioned pictures.

        Args:
            vectors: float32 [I, D].
            captions: The captions of each picture.
            kind: What the vectors are.

        Raises:
            ValueError: There are no pictures.
        """
        frequencies = DocumentFrequencies.count(captions)
        encoded = [caption.encode() for texts in captions for caption in texts]
        mean = vectors.mean(axis=0)
        return cls(
            vectors=_normalize(vectors - mean).astype(np.float16),
            mean=mean,
            text=np.frombuffer(b"".join(encoded), np.uint8),
            caption_ends=np.cumsum([len(text) for text in encoded], dtype=np.int64),
            picture_ends=np.cumsum([len(texts) for texts in captions], dtype=np.int64),
            frequencies=frequencies,
            kind=kind,
        )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Datastore":
        """Opens the folder that `save` wrote.

        Args:
            folder: The folder. A name of `SHIPPED_DATASTORES` means that one, if there is no folder of this name.

        Raises:
            DataError: The folder has no datastore, or its files are damaged.
        """
        path = datastore_file(folder)
        try:
            file = safe_open(path, framework="numpy")
            tensors = {name: file.get_tensor(name) for name in ("mean", "caption_ends", "picture_ends")}
            tensors |= {name: _Rows(file.get_slice(name)) for name in ("vectors", "text")}
            facts = file.metadata() or {}
            kind = VectorKind(facts.get("tower", ""), facts.get("origin", ""), len(tensors["mean"]))
            frequencies = DocumentFrequencies.load(path.with_name(FREQUENCIES_NAME))
            store = cls(**tensors, frequencies=frequencies, kind=kind)
            store._check()
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: there is no {DATASTORE_NAME}: make one with vlm-caption index, or take the one that comes "
                f"with the package, {' or '.join(SHIPPED_DATASTORES)}."
            ) from error
        except (OSError, SafetensorError, ValueError, TypeError) as error:
            raise DataError(f"{path}: this is not a datastore of vlm-caption index, or it is damaged.") from error
        return store

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes the datastore's two files to a folder, and returns the folder.

        Raises:
            OSError: They cannot be written.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.frequencies.save(folder)
        tensors = {name: np.ascontiguousarray(getattr(self, name)) for name in _TENSORS}
        facts = {"tower": self.kind.tower, "origin": self.kind.origin}
        write_bytes(Path(folder) / DATASTORE_NAME, save(tensors, metadata=facts))
        open_datastore.cache_clear()  # it may hold what was there before
        return Path(folder)

    def __len__(self) -> int:
        return len(self.vectors)

    def captions_of(self, picture: int) -> list[str]:
        """Returns the captions of one of its pictures."""
        first = int(self.picture_ends[picture - 1]) if picture else 0
        begin = int(self.caption_ends[first - 1]) if first else 0
        ends = self.caption_ends[first : int(self.picture_ends[picture])].tolist()
        content = self.text[begin : ends[-1] if ends else begin].tobytes()
        starts = [begin, *ends[:-1]]
        return [content[start - begin : end - begin].decode() for start, end in zip(starts, ends, strict=True)]

    def find(self, kind: VectorKind, vectors: np.ndarray, count: int = NEIGHBOURS) -> np.ndarray:
        """Returns the pictures most like some others, by the cosine of the angle between their vectors.

        All vectors are compared.

        Args:
            kind: What the vectors of the others are.
            vectors: float [B, D].
            count: The number of pictures to find, K. If there are fewer, all are found.

        Returns:
            Their places in the datastore, the most similar first; int64 [B, K].

        Raises:
            DataError: The datastore was made with another vision tower, or with other outputs of it.
        """
        if (self.kind.tower, self.kind.size) != (kind.tower, kind.size):
            raise DataError("The datastore was made with another vision tower: make it anew with vlm-caption index.")
        if self.kind.origin not in ("", kind.origin):
            raise DataError(
                f"The datastore has vectors of another kind ({self.kind.origin}) than this captioner ({kind.origin}): "
                "make it anew with vlm-caption index."
            )
        queries = _normalize(vectors.astype(np.float32) - self.mean)
        best = np.empty((len(queries), 0), np.float32)
        places = np.empty((len(queries), 0), np.int64)
        for start in range(0, len(self), PICTURES_AT_A_TIME):
            chunk = self.vectors[start : start + PICTURES_AT_A_TIME].astype(np.float32)
            best = np.concatenate([best, queries @ chunk.T], axis=1)
            numbers = np.broadcast_to(np.arange(start, start + len(chunk)), (len(queries), len(chunk)))
            places = np.concatenate([places, numbers], axis=1)
            order = np.argsort(-best, axis=1, kind="stable")[:, :count]
            best, places = (np.take_along_axis(array, order, axis=1) for array in (best, places))
        return places

    def references(self, kind: VectorKind, vectors: np.ndarray) -> list[list[str]]:
        """Returns the captions of the pictures most like each of some others; see `find`."""
        return [
            [caption for picture in pictures for caption in self.captions_of(picture)]
            for pictures in self.find(kind, vectors).tolist()
        ]

    def _check(self) -> None:
        """Raises ValueError where the tensors do not go together."""
        is_whole = (
            [len(tensor.shape) for tensor in (self.vectors, self.mean, self.text)] == [2, 1, 1]
            and all(ends.ndim == 1 and ends.dtype.kind == "i" for ends in (self.picture_ends, self.caption_ends))
            and self.mean.shape == self.vectors.shape[1:]
            and len(self.picture_ends) == len(self.vectors) > 0
            and int(self.picture_ends[-1]) == len(self.caption_ends) > 0
            and int(self.caption_ends[-1]) == len(self.text)
            and all((np.diff(ends, prepend=0) >= 0).all() for ends in (self.picture_ends, self.caption_ends))
        )
        if not is_whole:
            raise ValueError("the tensors do not go together")


def datastore_file(folder: str | os.PathLike) -> Path:
    """Returns the larger file of a datastore; for the arguments, see `Datastore.load`."""
    name = os.fspath(folder)
    is_shipped = name in SHIPPED_DATASTORES and not Path(folder).exists()
    return (shipped(SHIPPED_DATASTORES[name]) if is_shipped else Path(folder)) / DATASTORE_NAME


@lru_cache(maxsize=2)
def open_datastore(folder: str) -> Datastore:
    """Returns `Datastore.load(folder)`, which is done once."""
    return Datastore.load(folder)


def _normalize(vectors: np.ndarray) -> np.ndarray:
    """Returns vectors [..., D] of length 1; zeros stay zeros."""
    return vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)

"""Captioned pictures whose captions help to choose among those written for a picture: retrieval without training.

Of the captions that the model writes for a picture, the one is kept that agrees most with the captions of the pictures
most like it (Devlin et al. 2015, "Exploring Nearest Neighbor Approaches for Image Captioning", arXiv:1505.04467). The
pictures come from a datastore, which users can replace with one of their own, as in SmallCap (Ramos et al. 2023,
arXiv:2209.15323).
"""

import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import nn

from ..core.errors import DataError
from ..core.files import write_bytes
from ..core.shipped import shipped
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.configuration import CaptionerConfig
from ..towers.processor import CaptionerProcessor
from .consensus import FREQUENCIES_NAME, DocumentFrequencies

if TYPE_CHECKING:
    from datasets import Dataset

    from ..data.bad_images import BadImages, PictureOpener

DATASTORE_NAME = "datastore.safetensors"

# What comes with the package, by name.
SHIPPED_DATASTORES = {"coco": "checkpoints/coco-datastore"}

# How many pictures' captions are compared with, and how many captions are written to choose from.
NEIGHBOURS, CANDIDATES = 20, 8

# So many are looked at together, so that memory does not grow with the datastore.
_PICTURES_AT_A_TIME = 4_096

_TENSORS = ("vectors", "mean", "text", "caption_ends", "picture_ends")


@dataclass(frozen=True)
class Datastore:
    """Captioned pictures, which are found by their features. Its file is mapped into memory.

    Attributes:
        vectors: A vector of length 1 for each picture, float16 [I, D].
        mean: What was subtracted from the features, float32 [D].
        text: All captions in UTF-8, one after the other; uint8 [bytes].
        caption_ends: Where each caption ends in `text`, int64 [C].
        picture_ends: The number of captions up to and including those of each picture, int64 [I].
        frequencies: In how many pictures' captions each n-gram occurs.
        tower: The fingerprint of the vision tower; "" if it is unknown.
        origin: What the vectors are, in words; "" if it is unknown. See `picture_vectors`.
    """

    vectors: torch.Tensor
    mean: torch.Tensor
    text: torch.Tensor
    caption_ends: torch.Tensor
    picture_ends: torch.Tensor
    frequencies: DocumentFrequencies
    tower: str = ""
    origin: str = ""

    @classmethod
    def collect(
        cls,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        dataset: "Dataset",
        open_picture: "PictureOpener | None" = None,
        bad: "BadImages | None" = None,
    ) -> "Datastore":
        """Collects captioned pictures. Features come from the cache if they are there.

        Args:
            model: The captioner that will look pictures up. Its vision tower must be frozen.
            processor: The captioner's processor.
            dataset: Rows with `image` and `captions`.
            open_picture: Opens an image; by default within the limits of `open_image`.
            bad: Gets the images that cannot be opened, which are left out.

        Raises:
            ImageError: An image cannot be opened, and `bad` is not given.
            DataError: Too many images cannot be opened.
            ValueError: There are no pictures.
        """
        from ..features.inputs import ImageInputs  # imports datasets, which captioning does without

        images = ImageInputs(model, processor, dataset["image"], cache=True, open_picture=open_picture, bad=bad)
        captions = list(images.keep(dataset)["captions"])
        frequencies = DocumentFrequencies.count(captions)
        indices = range(len(captions))
        chunks = [indices[start : start + _PICTURES_AT_A_TIME] for start in indices[::_PICTURES_AT_A_TIME]]
        features = (images([{"index": index} for index in chunk])["image_features"] for chunk in chunks)
        vectors = torch.cat([picture_vectors(model.config, of_chunk) for of_chunk in features])
        mean = vectors.mean(dim=0)
        encoded = [caption.encode() for texts in captions for caption in texts]
        return cls(
            vectors=nn.functional.normalize(vectors - mean, dim=1).half(),
            mean=mean,
            text=torch.from_numpy(np.frombuffer(b"".join(encoded), np.uint8).copy()),
            caption_ends=torch.tensor([len(text) for text in encoded]).cumsum(dim=0),
            picture_ends=torch.tensor([len(texts) for texts in captions]).cumsum(dim=0),
            frequencies=frequencies,
            tower=_fingerprint(model.config),
            origin=_origin(model.config),
        )

    @classmethod
    def load(cls, folder: str | os.PathLike) -> "Datastore":
        """Opens the folder that `save` wrote.

        Args:
            folder: The folder. A name of `SHIPPED_DATASTORES` means that one, if there is no folder of this name.

        Raises:
            DataError: The folder has no datastore, or its files are damaged.
        """
        name = os.fspath(folder)
        is_shipped = name in SHIPPED_DATASTORES and not Path(folder).exists()
        path = (shipped(SHIPPED_DATASTORES[name]) if is_shipped else Path(folder)) / DATASTORE_NAME
        try:
            with safe_open(path, framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in _TENSORS}
                facts = file.metadata() or {}
            frequencies = DocumentFrequencies.load(path.with_name(FREQUENCIES_NAME))
            store = cls(
                **tensors, frequencies=frequencies, tower=facts.get("tower", ""), origin=facts.get("origin", "")
            )
            store._check()
        except FileNotFoundError as error:
            raise DataError(
                f"{folder}: there is no {DATASTORE_NAME}: make one with vlm-caption index, or take the one that comes "
                f"with the package, {' or '.join(SHIPPED_DATASTORES)}."
            ) from error
        except (OSError, SafetensorError, ValueError) as error:
            raise DataError(f"{path}: this is not a datastore of vlm-caption index, or it is damaged.") from error
        return store

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes the datastore's two files to a folder, and returns the folder.

        Raises:
            OSError: They cannot be written.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)
        self.frequencies.save(folder)
        tensors = {name: getattr(self, name).contiguous() for name in _TENSORS}
        facts = {"tower": self.tower, "origin": self.origin}
        write_bytes(Path(folder) / DATASTORE_NAME, save(tensors, metadata=facts))
        open_datastore.cache_clear()  # it may hold what was there before
        return Path(folder)

    def __len__(self) -> int:
        return len(self.vectors)

    def captions_of(self, picture: int) -> list[str]:
        """Returns the captions of one of its pictures."""
        first = int(self.picture_ends[picture - 1]) if picture else 0
        ends = self.caption_ends[first : int(self.picture_ends[picture])].tolist()
        starts = [int(self.caption_ends[first - 1]) if first else 0, *ends[:-1]]
        return [bytes(self.text[start:end].tolist()).decode() for start, end in zip(starts, ends, strict=True)]

    def find(self, config: CaptionerConfig, features: torch.Tensor, count: int = NEIGHBOURS) -> torch.Tensor:
        """Returns the pictures most like some others, by the cosine of the angle between their vectors.

        All vectors are compared.

        Args:
            config: The captioner's config.
            features: The features of the others, float [B, N, D_vision].
            count: The number of pictures to find, K. If there are fewer, all are found.

        Returns:
            Their places in the datastore, the most similar first; int64 [B, K], on the CPU.

        Raises:
            DataError: The datastore was made with another vision tower, or with other tokens of it.
        """
        if self.tower != _fingerprint(config) or len(self.mean) != _vector_size(config):
            raise DataError("The datastore was made with another vision tower: make it anew with vlm-caption index.")
        if self.origin not in ("", _origin(config)):
            raise DataError(
                f"The datastore has vectors of another kind ({self.origin}) than this captioner ({_origin(config)}): "
                "make it anew with vlm-caption index."
            )
        queries = nn.functional.normalize(picture_vectors(config, features) - self.mean, dim=1)
        best = torch.empty(len(queries), 0)
        places = torch.empty(len(queries), 0, dtype=torch.long)
        for start in range(0, len(self), _PICTURES_AT_A_TIME):
            chunk = self.vectors[start : start + _PICTURES_AT_A_TIME]
            similarity = torch.cat([best, queries @ chunk.float().T], dim=1)
            numbers = torch.arange(start, start + len(chunk)).expand(len(queries), -1)
            best, order = similarity.topk(min(count, similarity.shape[1]), dim=1)
            places = torch.cat([places, numbers], dim=1).gather(1, order)
        return places

    def references(self, config: CaptionerConfig, features: torch.Tensor) -> list[list[str]]:
        """Returns the captions of the pictures most like each of some others; see `find`."""
        return [
            [caption for picture in pictures for caption in self.captions_of(picture)]
            for pictures in self.find(config, features).tolist()
        ]

    def _check(self) -> None:
        """Raises ValueError where the tensors do not go together."""
        is_whole = (
            self.vectors.ndim == 2
            and self.mean.shape == self.vectors.shape[1:]
            and len(self.picture_ends) == len(self.vectors) > 0
            and int(self.picture_ends[-1]) == len(self.caption_ends) > 0
            and int(self.caption_ends[-1]) == len(self.text)
            and bool((self.picture_ends.diff() >= 0).all() and (self.caption_ends.diff() >= 0).all())
        )
        if not is_whole:
            raise ValueError("the tensors do not go together")


@lru_cache(maxsize=2)
def open_datastore(folder: str) -> Datastore:
    """Returns `Datastore.load(folder)`, which is done once."""
    return Datastore.load(folder)


def picture_vectors(config: CaptionerConfig, features: torch.Tensor) -> torch.Tensor:
    """Returns one vector for each picture: the pooled one, or the mean of all its tokens; of the last layer chosen.

    Args:
        config: The captioner's config.
        features: float [I, N, D_vision].

    Returns:
        float32 [I, D], on the CPU.
    """
    features = features[..., -_vector_size(config) :].detach().float().cpu()
    return features[:, 0] if _is_pooled(config) else features.mean(dim=1)


def _is_pooled(config: CaptionerConfig) -> bool:
    return config.image_tokens == "pooled" or config.pooled_in_front


def _origin(config: CaptionerConfig) -> str:
    """Returns what `picture_vectors` are, in words."""
    layers = config.vision_feature_layers
    return f"{'pooled' if _is_pooled(config) else 'mean'} of {f'layer {layers[-1]}' if layers else 'the output'}"


def _vector_size(config: CaptionerConfig) -> int:
    return config.vision_feature_size // len(config.vision_feature_layers or [0])


def _fingerprint(config: CaptionerConfig) -> str:
    backbone: dict[str, Any] = config.vision_backbone or {}
    return backbone.get("fingerprint") or ""

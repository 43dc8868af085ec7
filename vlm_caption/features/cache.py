"""Computes the features of a frozen vision tower once for each image, and keeps them on disk for every later epoch.

    features = image_features(model, processor, dataset["image"])  # computes what is not there yet
    features[[3, 14]]                                              # [2, N, D_vision], from memory-mapped files

The cache has a folder for each *setting*. The folder's name is a digest of the tower's weights and config, the
preprocessing, the choice of tokens, the dtype and the way that pictures are opened. In the folder, features are found
by the content of an image (`shards.py`, `contents.py`). A changed tower or setting therefore has another folder, and a
changed image has another key, so stale features are never read.

An image's features are bitwise reproducible on a machine. Batches always have the same shape, and on a CPU every call
of the tower runs on one thread, with as many calls side by side as there are threads. The features depend neither on
the number of processes, nor on the order of images, nor on an earlier run that was killed.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from ..core.cache import cache_dir
from ..core.console import progress
from ..core.digests import digest_tensors
from ..core.errors import DataError, ImageError
from ..core.threads import count_cores, map_in_threads
from ..data.bad_images import PictureOpener
from ..data.places import Place
from ..images.opening import PIXELS_VERSION
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.configuration import CaptionerConfig
from ..towers.processor import CaptionerProcessor
from .contents import as_image_error, content_digest, content_digests
from .shards import FeatureShards, FeatureTable

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

# Settings of the composed model that decide which tokens are taken from the tower's output.
_TOKEN_SETTINGS = ("image_tokens", "image_grid", "pooled_in_front", "pooled_feature")

# Fields of a tower's config that saving or loading it changes.
_INCIDENTAL = ("_name_or_path", "architectures", "dtype")

_SHARD_IMAGES = 1024
_SHARD_BYTES = 64_000_000  # held in memory until the shard is written


def features_dir() -> Path:
    """Returns the folder that features are kept in by default."""
    return cache_dir() / "features"


def features_key(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    dtype: torch.dtype = torch.bfloat16,
    open_picture: PictureOpener | None = None,
) -> str:
    """Returns the SHA-256, in hex, of all that features depend on besides the image: the name of their folder."""
    return _digest_settings(_settings(model, processor, dtype, open_picture or PictureOpener()))


def _digest_settings(settings: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()


def _settings(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    dtype: torch.dtype,
    open_picture: PictureOpener,
) -> dict[str, Any]:
    config: CaptionerConfig = model.config
    tower_config = model.core.vision_tower.config.to_dict()
    # An adapter's scale is in no weight. Without an adapter, the keys are the same as before there were adapters.
    adapter = {} if config.vision_adapter is None else {"adapter": config.vision_adapter}
    # Without chosen layers, the keys are the same as before layers could be chosen. With them, `pooled_feature` is not
    # used: the pooled vector is the class token.
    layers = {}
    if config.vision_feature_layers:
        layers = {"vision_feature_layer": config.vision_feature_layers, "pooled_feature": "cls"}
    flipped = ["flipped"] if open_picture.flip else []
    return adapter | {
        # The weights in the model, because they may differ from those of the backbone.
        "tower_weights": digest_tensors(model.core.vision_tower.state_dict().items()).hexdigest(),
        "tower_config": {name: value for name, value in tower_config.items() if name not in _INCIDENTAL},
        "tower_dtype": str(model.core.vision_tower.dtype),
        "preprocessing": processor.image_processor.to_dict(),
        "tokens": {name: getattr(config, name) for name in _TOKEN_SETTINGS} | layers,
        "dtype": str(dtype),
        "pixels": [PIXELS_VERSION, open_picture.max_pixels, open_picture.max_bytes, *flipped],
    }


def image_features(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    images: Sequence[str],
    directory: Path | None = None,
    batch_size: int = 16,
    dtype: torch.dtype = torch.bfloat16,
    open_picture: PictureOpener | None = None,
    on_error: Callable[[int, ImageError], None] | None = None,
) -> FeatureTable:
    """Returns the vision tower's tokens of each image, memory-mapped from the cache, and first computes missing ones.

    If torch.distributed is initialised, all processes call this with the same images, each computes its share, and all
    get the same table. A run that was killed resumes where it stopped: each process loses one shard at most.

    Args:
        model: The captioner. Its vision tower must be frozen.
        processor: The model's processor.
        images: Paths or other places (`vlm_caption.data.Place`), as in a dataset's column `image`.
        directory: The cache's folder; by default `features` in the package's cache.
        batch_size: The number of images that go through the tower at once, on each thread.
        dtype: The dtype of the stored features.
        open_picture: Opens an image; by default within the limits of `open_image`.
        on_error: Gets the index and the error of each image that cannot be opened, in order. Its row must not be
            looked up in the table. By default, the error is raised.

    Returns:
        `dtype` [len(images), N, D_vision], in the order of `images`.

    Raises:
        ImageError: An image cannot be opened and `on_error` is None.
        DataError: The cache cannot be read or written, or there is no room for it.
    """
    open_picture = open_picture or PictureOpener()
    settings = _settings(model, processor, dtype, open_picture)
    shards = FeatureShards((directory or features_dir()) / _digest_settings(settings))
    keys, errors = _of_first_process(lambda: content_digests(images, open_picture.max_bytes))
    if errors and on_error is None:
        raise errors[min(errors)]

    row_shape = (model.config.vision_seq_length, model.config.vision_feature_size)
    # Only one process looks, because all must miss the same images while another run may be writing.
    missing = _of_first_process(lambda: _missing(shards, keys, errors))
    if len(missing):
        _say_size(len(missing), row_shape, dtype, shards.directory)
        shards.describe({"tower": (model.config.vision_backbone or {}).get("name"), **settings})
        encoder = _Encoder(model, processor, images, keys, open_picture, batch_size, dtype)
        failed = _compute(encoder, shards, _share(missing, batch_size), row_shape, on_error is None)
        failed = {index: error for part in _of_all_processes(failed) for index, error in part.items()}
        errors |= _spread(failed, images, keys)
    else:
        logger.info("Image features: %d images from %s", len(images), shards.directory)

    shards.refresh()
    places = shards.find(keys)
    _check_found(places, errors, shards.directory)
    if on_error is not None:
        for index in sorted(errors):
            on_error(index, errors[index])
    return shards.table(places, row_shape, dtype)


def _missing(shards: FeatureShards, keys: np.ndarray, errors: dict[int, ImageError]) -> np.ndarray:
    """Returns the indices of images that have no features yet, one for each content, in order."""
    absent = np.flatnonzero(shards.find(keys)[:, 0] < 0)
    absent = absent[~np.isin(absent, list(errors))]
    _, first = np.unique(keys[absent], axis=0, return_index=True)
    return absent[np.sort(first)]


def _check_found(places: np.ndarray, errors: dict[int, ImageError], directory: Path) -> None:
    """Checks that all images without errors have features.

    Raises:
        DataError: Some have none.
    """
    if lost := set(np.flatnonzero(places[:, 0] < 0).tolist()) - errors.keys():
        raise DataError(
            f"{directory}: the features of {len(lost)} images are not there after they were computed: all processes "
            "must share this folder, and nothing may delete from it meanwhile."
        )


def _share(missing: np.ndarray, batch_size: int) -> np.ndarray:
    """Returns the share of this process: of n processes, each takes every n-th run of neighbouring images."""
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    run = min(_SHARD_IMAGES, -(-len(missing) // processes))
    run = -(-run // batch_size) * batch_size
    return missing[(np.arange(len(missing)) // run) % processes == _rank()]


def _spread(failed: dict[int, ImageError], images: Sequence[str], keys: np.ndarray) -> dict[int, ImageError]:
    """Returns errors for all images with the same content as one that failed."""
    by_key = {keys[index].tobytes(): (index, error) for index, error in failed.items()}
    errors = {}
    for twin, key in enumerate(keys if failed else ()):
        index, error = by_key.get(key.tobytes(), (None, None))
        if error is not None:
            name = Place.parse(images[twin]).described
            errors[twin] = error if twin == index else type(error)(name, error.reason)
    return errors


def _say_size(count: int, row_shape: tuple[int, int], dtype: torch.dtype, directory: Path) -> None:
    """Logs how large the features of `count` images are.

    Raises:
        DataError: There is no room for them.
    """
    size = count * (row_shape[0] * row_shape[1] * dtype.itemsize + 32)
    free = shutil.disk_usage(directory).free
    if size > free:
        raise DataError(
            f"{directory}: the features of {count} images take {size / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are "
            "free there: make room, set VLM_CAPTION_CACHE to another folder, or training.cache_features to false."
        )
    logger.info("Image features: computing %d images once, %.0f MB into %s", count, size / 1e6, directory)


def _compute(
    encoder: "_Encoder", shards: FeatureShards, indices: np.ndarray, row_shape: tuple[int, int], strict: bool
) -> dict[int, ImageError]:
    """Computes and writes the features of the images at `indices`.

    Returns:
        The errors of images that cannot be opened.

    Raises:
        ImageError: With `strict`, the first of these errors. The features computed before it are written.
    """
    per_image = row_shape[0] * row_shape[1] * encoder.dtype.itemsize
    size = min(_SHARD_IMAGES, max(1, _SHARD_BYTES // per_image))
    features = torch.empty(size, *row_shape, dtype=encoder.dtype)
    filled: list[int] = []  # the images in `features`
    failed: dict[int, ImageError] = {}

    def write() -> None:
        if filled:
            shards.write(encoder.keys[filled], features[: len(filled)])
            filled.clear()

    with contextlib.closing(encoder.encode(indices)) as encoded:
        results: Iterable[tuple[int, torch.Tensor | ImageError]] = encoded
        if _rank() == 0:
            warm = 4 * encoder.workers * encoder.batch_size
            results = _say_time(progress(results, total=len(indices), desc="image features"), len(indices), warm)
        try:
            for index, result in results:
                if isinstance(result, ImageError):
                    if strict:
                        raise result
                    failed[index] = result
                    continue
                features[len(filled)] = result
                filled.append(index)
                if len(filled) == size:
                    write()
        finally:  # also when interrupted
            write()
    return failed


def _say_time(results: Iterable[Item], total: int, warm: int) -> Iterator[Item]:
    """Yields the results, and logs after `warm` of them how long the others will take."""
    start = time.monotonic()
    for count, result in enumerate(results, 1):
        yield result
        if count == warm:
            rate = count / (time.monotonic() - start)
            minutes = (total - count) / rate / 60
            if minutes >= 1:
                logger.info("Image features: %.3g images/s, about %.0f minutes to go", rate, minutes)


class _Encoder:
    """Turns pictures into features, batch by batch on several threads.

    Each thread opens the pictures of its batch and takes them through the tower, so one thread can decode while
    another multiplies: Pillow, NumPy and PyTorch release the interpreter's lock while they work. On a CPU, every call
    of the tower runs on one thread. That needs no waiting within a layer, and rounds the same on any number of cores.
    On an accelerator, one batch is in the tower at a time.
    """

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        images: Sequence[str],
        keys: np.ndarray,
        open_picture: PictureOpener,
        batch_size: int,
        dtype: torch.dtype,
    ):
        self.model, self.processor, self.images, self.keys = model, processor, images, keys
        self.open_picture, self.batch_size, self.dtype = open_picture, batch_size, dtype
        if model.core.vision_tower.device.type == "cpu":
            self.workers = torch.get_num_threads()
            self._turn = contextlib.nullcontext()
        else:
            self.workers = max(1, count_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
            self._turn = threading.Lock()

    def encode(self, indices: np.ndarray) -> Generator[tuple[int, torch.Tensor | ImageError]]:
        """Yields each index, in order, with its image's features, [N, D_vision], or its error."""
        threads = torch.get_num_threads()
        starts = range(0, len(indices), self.batch_size)
        batches = (indices[start : start + self.batch_size].tolist() for start in starts)
        try:
            with contextlib.closing(map_in_threads(self._encode_batch, batches, self.workers)) as results:
                for result in results:
                    yield from result
        finally:
            torch.set_num_threads(threads)  # later threads start with the number that was set last

    @torch.inference_mode()
    def _encode_batch(self, indices: list[int]) -> list[tuple[int, torch.Tensor | ImageError]]:
        torch.set_num_threads(1)
        opened = [self._open(index) for index in indices]
        pixels = [picture for picture in opened if not isinstance(picture, ImageError)]
        if not pixels:
            return list(zip(indices, opened, strict=True))
        # Batches always have the same shape, because another shape may give other last bits.
        batch = torch.cat([*pixels, *[pixels[0]] * (self.batch_size - len(pixels))])
        with self._turn:
            encoded = self.model.core.encode_images(batch)["pooler_output"]  # [B, N, D_vision]
            features = encoded.to(self.dtype).cpu()
        rows = iter(features)
        return [
            (index, picture if isinstance(picture, ImageError) else next(rows))
            for index, picture in zip(indices, opened, strict=True)
        ]

    def _open(self, index: int) -> torch.Tensor | ImageError:
        """Returns the tower's input, float [1, 3, H, W], or the error of the image."""
        image = self.images[index]
        try:
            picture = self.open_picture(image)
            if content_digest(image, self.open_picture.max_bytes) != self.keys[index].tobytes():
                raise ImageError(Place.parse(image).described, "the file changed while its features were computed")
            pixels = self.processor.picture_to_pixels(picture)
        except (ImageError, OSError, MemoryError) as error:
            return as_image_error(image, error)
        return pixels.to(self.model.core.vision_tower.dtype)


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


def _of_first_process(compute: Callable[[], Item]) -> Item:
    """Computes a value in the first process, and returns it in all."""
    values: list[Any] = [compute() if _rank() == 0 else None]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def _of_all_processes(value: Item) -> list[Item]:
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values

"""Frozen features, computed once: what a frozen vision tower says of each image, kept on disk for every later epoch.

    features = image_features(model, processor, dataset["image"])  # computes what is not there yet
    features[[3, 14]]                                               # [2, N, D_vision], from memory-mapped files

The cache has a folder for each *setting*: its name is a fingerprint of the tower's weights and config, the
preprocessing, the token choice, the dtype and the way that pictures are opened. In it, features are found by the
content of an image (`feature_shards.py`, `image_contents.py`). So a changed tower or setting looks into another folder
and a changed image is another key: nothing stale is ever read, and nothing is mixed.

An image's features are the same bits whoever computes them: batches always have the same shape, and on a CPU every
tower call runs on one thread, as many side by side as there are threads. So neither the number of processes, nor the
order of images, nor a run that was killed half-way can be seen in them.
"""

import contextlib
import hashlib
import json
import logging
import os
import shutil
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import distributed

from ..core.cache import cache_dir
from ..core.console import progress
from ..core.digests import digest_tensors
from ..core.errors import DataError, ImageError
from ..data.bad_images import PictureOpener
from ..data.places import Place
from ..images.opening import PIXELS_VERSION
from ..model.configuration_captioner import CaptionerConfig
from ..model.processing_captioner import CaptionerProcessor
from ..towers.captioner import CaptionerForConditionalGeneration
from .contents import content_digest, content_digests
from .shards import FeatureShards, FeatureTable

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

CONTENTS_NAME = "contents.sqlite"

# Settings of the composed model that decide which tokens are taken from the tower's output.
_TOKEN_SETTINGS = ("image_tokens", "image_grid", "pooled_in_front", "pooled_feature")

# Fields of a tower's config that saving or loading it changes.
_INCIDENTAL = ("_name_or_path", "architectures", "dtype")

_SHARD_IMAGES = 1024
_SHARD_BYTES = 64_000_000  # held in memory until the shard is written


def features_dir() -> Path:
    """Where features are kept unless told otherwise."""
    return cache_dir() / "features"


def features_key(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    dtype: torch.dtype = torch.bfloat16,
    open_picture: PictureOpener | None = None,
) -> str:
    """SHA-256, as hex, of everything but the image that features depend on: the name of their folder."""
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
    # Its scale is in no weight. Without one the keys are those of before there were adapters.
    adapter = {} if config.vision_adapter is None else {"adapter": config.vision_adapter}
    return adapter | {
        # Not the backbone's fingerprint: what counts is what is in the model, wherever it came from.
        "tower_weights": digest_tensors(model.core.vision_tower.state_dict().items()).hexdigest(),
        "tower_config": {name: value for name, value in tower_config.items() if name not in _INCIDENTAL},
        "tower_dtype": str(model.core.vision_tower.dtype),
        "preprocessing": processor.image_processor.to_dict(),
        "tokens": {name: getattr(config, name) for name in _TOKEN_SETTINGS},
        "dtype": str(dtype),
        "pixels": [PIXELS_VERSION, open_picture.max_pixels, open_picture.max_bytes],
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
    """The vision tower's tokens of each image, memory-mapped from the cache, computed first where they are not there.

    Where torch.distributed is initialised, all processes call this with the same images, each computes its share, and
    all get the same table. A run that is killed goes on where it was: at most a shard of each process is lost.

    Args:
        model: its vision tower must be frozen.
        processor: the model's.
        images: paths or other places (`vlm_caption.data.Place`), as a dataset's column `image` has them.
        directory: the cache's folder; by default `features` in the package's cache.
        batch_size: images that go through the tower at once, on each thread.
        dtype: of the stored features.
        open_picture: opens an image; by default within the limits of `open_image`.
        on_error: gets the index and the error of each image that cannot be opened, in order; its row must not be
            looked up in the table. By default the error is raised.

    Returns:
        `dtype` [len(images), N, D_vision], in the order of `images`.

    Raises:
        ImageError: if an image cannot be opened and `on_error` is None.
        DataError: if the cache cannot be written, or there is no room for it.
    """
    open_picture = open_picture or PictureOpener()
    directory = features_dir() if directory is None else directory
    settings = _settings(model, processor, dtype, open_picture)
    shards = FeatureShards(directory / _digest_settings(settings))
    with _first_process_first():  # which remembers what the others then find
        keys, errors = content_digests(images, directory / CONTENTS_NAME, open_picture.max_bytes)
    if errors and on_error is None:
        raise errors[min(errors)]

    row_shape = (model.config.vision_seq_length, model.config.vision_feature_size)
    # By one process, for another run may be writing: all must see the same images missing.
    missing = _of_first_process(_missing(shards, keys, errors))
    if len(missing):
        _say_size(len(missing), row_shape, dtype, shards.directory)
        backbone = model.config.vision_backbone or {}
        shards.describe({"tower": backbone.get("name"), **settings})
        encoder = _Encoder(model, processor, images, keys, open_picture, batch_size, dtype)
        failed = _compute(encoder, shards, _share(missing, batch_size), row_shape, on_error is None)
        failed = {index: error for part in _of_all_processes(failed) for index, error in part.items()}
        errors |= _spread(failed, images, keys)
    else:
        logger.info("Image features: %d images from %s", len(images), shards.directory)

    shards.refresh()
    places = shards.find(keys)
    lost = np.flatnonzero(places[:, 0] < 0)
    if lost := [index for index in lost.tolist() if index not in errors]:
        raise DataError(
            f"{shards.directory}: the features of {len(lost)} images are not there after they were computed: all "
            "processes must share this folder, and nothing may delete from it meanwhile."
        )
    if on_error is not None:
        for index in sorted(errors):
            on_error(index, errors[index])
    return shards.table(places, row_shape, dtype)


def _missing(shards: FeatureShards, keys: np.ndarray, errors: dict[int, ImageError]) -> np.ndarray:
    """Indices of images whose features are not there, one of each content, in order."""
    absent = np.flatnonzero(shards.find(keys)[:, 0] < 0)
    absent = absent[~np.isin(absent, list(errors))]
    _, first = np.unique(keys[absent], axis=0, return_index=True)
    return absent[np.sort(first)]


def _share(missing: np.ndarray, batch_size: int) -> np.ndarray:
    """What this process computes: every so-manieth run of neighbouring images."""
    processes = distributed.get_world_size() if distributed.is_initialized() else 1
    run = min(_SHARD_IMAGES, -(-len(missing) // processes))
    run = -(-run // batch_size) * batch_size
    return missing[(np.arange(len(missing)) // run) % processes == _rank()]


def _spread(failed: dict[int, ImageError], images: Sequence[str], keys: np.ndarray) -> dict[int, ImageError]:
    """The errors of images that were tried, for all images of the same content."""
    by_key = {keys[index].tobytes(): (index, error) for index, error in failed.items()}
    errors = {}
    for twin, key in enumerate(keys if failed else ()):
        index, error = by_key.get(key.tobytes(), (None, None))
        if error is not None:
            name = Place.parse(images[twin]).described
            errors[twin] = error if twin == index else type(error)(name, error.reason)
    return errors


def _say_size(count: int, row_shape: tuple[int, int], dtype: torch.dtype, directory: Path) -> None:
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
    """Computes and writes the features of these images.

    Returns:
        the errors of those that cannot be opened.

    Raises:
        ImageError: the first of these, if `strict`. What was computed before is written.
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

    with _threads(encoder.device) as (executor, count):
        results: Iterable[tuple[int, torch.Tensor | ImageError]] = encoder.encode(indices, executor, ahead=2 * count)
        if _rank() == 0:
            warm = 4 * count * encoder.batch_size
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
    """Passes the results on and says, after `warm` of them, how long the rest takes."""
    start = time.monotonic()
    for count, result in enumerate(results, 1):
        yield result
        if count == warm:
            rate = count / (time.monotonic() - start)
            minutes = (total - count) / rate / 60
            if minutes >= 1:
                logger.info("Image features: %.3g images/s, about %.0f minutes to go", rate, minutes)


class _Encoder:
    """Pictures to features: one batch after the other, on several threads, in order.

    A thread opens the pictures of its batch and takes them through the tower, so that decoding on one thread goes on
    beside the tower on another. Pillow, NumPy and PyTorch let go of the interpreter's lock while they work. On an
    accelerator one batch is in the tower at a time.
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
        self.device = model.core.vision_tower.device
        self._turn = contextlib.nullcontext() if self.device.type == "cpu" else threading.Lock()

    def encode(
        self, indices: np.ndarray, executor: Executor, ahead: int
    ) -> Iterator[tuple[int, torch.Tensor | ImageError]]:
        """Yields each index with its image's features, [N, D_vision], or with what is wrong with it.

        At most `ahead` batches are under way or waiting for the caller.
        """
        under_way: deque[Future] = deque()
        for start in range(0, len(indices), self.batch_size):
            batch = indices[start : start + self.batch_size].tolist()
            under_way.append(executor.submit(self._encode_batch, batch, [self.images[index] for index in batch]))
            if len(under_way) >= ahead:
                yield from under_way.popleft().result()
        while under_way:
            yield from under_way.popleft().result()

    @torch.inference_mode()
    def _encode_batch(self, indices: list[int], images: list[str]) -> list[tuple[int, torch.Tensor | ImageError]]:
        opened = [self._open(index, image) for index, image in zip(indices, images, strict=True)]
        pixels = [picture for picture in opened if not isinstance(picture, ImageError)]
        if not pixels:
            return list(zip(indices, opened, strict=True))
        # Of one shape always: other shapes may be computed in another order, with other last bits.
        batch = torch.cat([*pixels, *[pixels[0]] * (self.batch_size - len(pixels))])
        with self._turn:
            encoded = self.model.core.encode_images(batch)["pooler_output"]  # [B, N, D_vision]
            features = encoded.to(self.dtype).cpu()
        rows = iter(features)
        return [
            (index, picture if isinstance(picture, ImageError) else next(rows))
            for index, picture in zip(indices, opened, strict=True)
        ]

    def _open(self, index: int, image: str) -> torch.Tensor | ImageError:
        """The tower's input, float [1, 3, H, W]."""
        try:
            picture = self.open_picture(image)
            if content_digest(image, self.open_picture.max_bytes) != self.keys[index].tobytes():
                raise ImageError(Place.parse(image).described, "the file changed while its features were computed")
        except ImageError as error:
            return error.detached()
        pixels = self.processor.image_processor(picture, return_tensors="pt")["pixel_values"]
        return pixels.to(self.model.core.vision_tower.dtype)


@contextlib.contextmanager
def _threads(device: torch.device) -> Generator[tuple[Executor, int]]:
    """Threads for an `_Encoder`, and how many. PyTorch's own number of threads is that of the caller again behind it.

    On a CPU each runs the tower by itself: that needs no waiting for one another within a layer, and rounds the same
    on any number of cores.
    """
    before = torch.get_num_threads()
    if device.type == "cpu":
        count = before
    else:
        count = max(1, (os.cpu_count() or 1) // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))
    executor = ThreadPoolExecutor(count, initializer=torch.set_num_threads, initargs=(1,))
    try:
        yield executor, count
    finally:
        executor.shutdown(cancel_futures=True)
        torch.set_num_threads(before)  # what a thread sets is what later ones begin with


def _rank() -> int:
    return distributed.get_rank() if distributed.is_initialized() else 0


@contextlib.contextmanager
def _first_process_first() -> Generator[None]:
    if _rank() > 0:
        distributed.barrier()
    try:
        yield
    finally:
        if distributed.is_initialized() and _rank() == 0:
            distributed.barrier()


def _of_first_process(value: Item) -> Item:
    values = [value]
    if distributed.is_initialized():
        distributed.broadcast_object_list(values)
    return values[0]


def _of_all_processes(value: Item) -> list[Item]:
    if not distributed.is_initialized():
        return [value]
    values: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(values, value)
    return values

"""Captions a whole split from its image features, and keeps the captions as they are written."""

import json
import logging
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import xxhash
from datasets import Dataset

from ..captioning.caption_file import CaptionFile
from ..captioning.captioner import Captioner
from ..captioning.consensus import FREQUENCIES_NAME
from ..captioning.datastore import datastore_file
from ..captioning.generation import GenerationSettings, caption_batch
from ..core.console import progress
from ..core.digests import checksum_file, digest_tensors
from ..core.files import is_file
from ..data.bad_images import PictureOpener
from ..data.collator import CaptionCollator
from ..data.vectors import Vectors
from ..features.cache import features_key
from ..features.contents import content_digests
from ..features.inputs import ImageInputs

logger = logging.getLogger(__name__)

UNFINISHED_NAME = "unfinished_captions.jsonl"

# The number of images that are captioned together. On a CPU, larger batches are no faster: a batch takes as many steps
# as its longest caption.
BATCH_SIZE = 8


@contextmanager
def write_captions(
    captioner: Captioner,
    dataset: Dataset,
    collator: CaptionCollator,
    generation: dict[str, Any],
    unfinished: Path | None,
) -> Generator[list[str]]:
    """Captions each row, and yields the captions. They are the same, however often the work was stopped.

    Args:
        captioner: The captioner.
        dataset: Rows as the collator takes them.
        collator: Gives the images, with its `encode_images`, and what stands before a caption.
        generation: Settings of `generate` in place of the checkpoint's own.
        unfinished: The file that keeps the captions until the caller is done with them. None: they are not kept.

    Raises:
        DataError: They cannot be kept, or another process keeps captions in the same file.
    """
    if unfinished is None:
        yield list(_write(captioner, dataset, collator, generation, 0, None))
        return
    images = collator.encode_images
    assert isinstance(images, ImageInputs)
    of_images = (
        vector_settings(images.features)
        if isinstance(images.features, Vectors)
        else picture_settings(captioner, dataset["image"], images.open_picture)
    )
    settings = caption_settings(captioner, collator, generation) | of_images | question_settings(dataset)
    with open_unfinished(unfinished, settings) as file:
        if done := len(file.entries):
            logger.info("Resuming after %d captions of %d", done, len(dataset))
        for _ in _write(captioner, dataset, collator, generation, done, file):
            pass
        yield [entry["caption"] for entry in file.entries]
        file.remove()


def open_unfinished(path: Path, settings: dict[str, Any]) -> CaptionFile:
    """Opens a file of unfinished captions, and keeps whole batches of those that were written with these settings.

    Raises:
        DataError: The file cannot be written, or is in use.
    """
    file = CaptionFile(path, settings)
    file.keep(len(file.entries) // BATCH_SIZE * BATCH_SIZE)
    before, settings = file.settings_before, json.loads(json.dumps(settings))
    if before not in (None, settings):
        changes = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
        logger.info("%s was written with another %s: starting afresh", path, " and another ".join(changes))
    return file


def caption_settings(captioner: Captioner, collator: CaptionCollator, generation: dict[str, Any]) -> dict[str, Any]:
    """Returns what the captions of `write_captions` depend on besides the images, for JSON."""
    own = captioner.model.generation_config.to_diff_dict()
    own.pop("transformers_version", None)
    return {
        "checkpoint": digest_tensors(captioner.model.state_dict().items()).hexdigest(),
        "adapters": [captioner.model.config.vision_adapter, captioner.model.config.text_adapter],
        # Its ids too, which depend on the chat template.
        "prompt": [collator.prompt, captioner.processor.chat, collator.prefix],
        "generation": own | generation,
        "ranking": _ranking_settings(captioner, generation),
    }


def _ranking_settings(captioner: Captioner, generation: dict[str, Any]) -> list[str]:
    """Returns checksums of the files by which captions are ranked."""
    files: list[Path] = []
    if generation.get("datastore") is not None:
        file = datastore_file(generation["datastore"])
        files = [file, file.with_name(FREQUENCIES_NAME)]
    elif generation.get("consensus") is not None:
        files = [Path(captioner.model.name_or_path, FREQUENCIES_NAME)]
    return [checksum_file(file) for file in files if is_file(file)]


def picture_settings(captioner: Captioner, images: Sequence[str], open_picture: PictureOpener) -> dict[str, Any]:
    """Returns which pictures are captioned, and how the model sees them."""
    digests, _ = content_digests(images, open_picture.max_bytes)
    return {
        "data": xxhash.xxh3_128_hexdigest(digests.tobytes()),
        "image features": features_key(captioner.model, captioner.processor, open_picture=open_picture),
    }


def question_settings(dataset: Dataset) -> dict[str, Any]:
    """Returns which questions are asked, if any are."""
    if "questions" not in dataset.column_names:
        return {}
    return {"questions": xxhash.xxh3_128_hexdigest(json.dumps([row[0] for row in dataset["questions"]]).encode())}


def vector_settings(vectors: Vectors) -> dict[str, Any]:
    """Returns which vectors are captioned."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(vectors), BATCH_SIZE):
        digest.update(vectors[start : start + BATCH_SIZE].contiguous().numpy())
    return {"data": digest.hexdigest()}


def _write(
    captioner: Captioner,
    dataset: Dataset,
    collator: CaptionCollator,
    generation: dict[str, Any],
    done: int,
    file: CaptionFile | None,
) -> Iterator[str]:
    """Yields the captions of all rows but the first `done`, once they are in the file."""

    def batches() -> Iterator[str]:
        for start in range(done, len(dataset), BATCH_SIZE):
            rows = [dataset[row] for row in range(start, min(start + BATCH_SIZE, len(dataset)))]
            captions = _generate(captioner, rows, collator, generation, seed=start)
            if file is not None:
                pairs = zip(rows, captions, strict=True)
                file.add_entries({"image": str(row["image"]), "caption": text} for row, text in pairs)
            yield from captions

    yield from progress(batches(), total=len(dataset) - done, desc="captions")


@torch.inference_mode()
def _generate(
    captioner: Captioner, rows: list[dict], collator: CaptionCollator, generation: dict[str, Any], seed: int
) -> list[str]:
    # The seed depends on the place of the batch, so that sampled captions do not depend on where a killed evaluation
    # resumes.
    return caption_batch(
        captioner.model, collator, rows, GenerationSettings.from_arguments(generation | {"seed": seed})
    )

"""Captions of a whole split from its image features, kept as they are written: who was killed goes on from there."""

import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import xxhash
from datasets import Dataset

from ..captioning.captioner import Captioner
from ..captioning.generation import caption_batch
from ..core.console import progress
from ..core.digests import digest_tensors
from ..core.errors import DataError
from ..core.files import write_text
from ..data.bad_images import PictureOpener
from ..data.collator import CaptionCollator
from ..data.vectors import Vectors
from ..features.cache import features_key
from ..features.contents import content_digests

logger = logging.getLogger(__name__)

UNFINISHED_NAME = "unfinished_captions.jsonl"

# Images that are captioned together.
BATCH_SIZE = 8


class UnfinishedCaptions:
    """A file of JSON lines: what the captions depend on, and then one caption a line.

    Captions that were written with other settings are not taken over: a log line says which setting differs.

    Args:
        path: the file; None keeps nothing.
        settings: everything that the captions depend on, as JSON has it.

    Attributes:
        captions: those written so far, in order, in whole batches.

    Raises:
        DataError: if the file cannot be written.
    """

    def __init__(self, path: Path | None, settings: dict[str, Any]):
        self.path = path
        self.captions: list[str] = []
        if path is None:
            return
        settings = json.loads(json.dumps(settings))
        before, captions = _read(path)
        if before == settings:
            self.captions = captions[: len(captions) // BATCH_SIZE * BATCH_SIZE]
        elif before is not None:
            changes = [name for name in {**before, **settings} if before.get(name) != settings.get(name)]
            logger.info("%s was written with another %s: starting afresh", path, " and another ".join(changes))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, _as_line(settings) + "".join(map(_as_line, self.captions)))
        except OSError as error:
            raise self._unwritable(error) from error

    def add(self, captions: Sequence[str]) -> None:
        """Writes down some more.

        Raises:
            DataError: if they cannot be written.
        """
        self.captions += captions
        if self.path is None:
            return
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(map(_as_line, captions)))
        except OSError as error:
            raise self._unwritable(error) from error

    def remove(self) -> None:
        """Deletes the file: the captions are elsewhere now."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)

    def _unwritable(self, error: OSError) -> DataError:
        return DataError(f"{self.path}: captions cannot be written there ({error.strerror or error})")


def caption_settings(captioner: Captioner, collator: CaptionCollator, generation: dict[str, Any]) -> dict[str, Any]:
    """What the captions of `write_captions` depend on beside the images, for JSON; arguments as there."""
    own = captioner.model.generation_config.to_diff_dict()
    own.pop("transformers_version", None)
    return {
        "checkpoint": digest_tensors(captioner.model.state_dict().items()).hexdigest(),
        "adapters": [captioner.model.config.vision_adapter, captioner.model.config.text_adapter],
        # Its ids as well, which depend on the chat template.
        "prompt": [collator.prompt, captioner.processor.chat, collator.prefix],
        "generation": own | generation,
    }


def picture_settings(captioner: Captioner, images: Sequence[str], open_picture: PictureOpener) -> dict[str, Any]:
    """Which pictures are captioned, and how they are seen; arguments as of `image_features`."""
    digests, _ = content_digests(images, open_picture.max_bytes)
    return {
        "data": xxhash.xxh3_128_hexdigest(digests.tobytes()),
        "image features": features_key(captioner.model, captioner.processor, open_picture=open_picture),
    }


def question_settings(dataset: Dataset) -> dict[str, Any]:
    """Which questions are asked, if any are."""
    if "questions" not in dataset.column_names:
        return {}
    return {"questions": xxhash.xxh3_128_hexdigest(json.dumps([row[0] for row in dataset["questions"]]).encode())}


def vector_settings(vectors: Vectors) -> dict[str, Any]:
    """Which vectors are captioned."""
    digest = xxhash.xxh3_128()
    for start in range(0, len(vectors), BATCH_SIZE):
        digest.update(vectors[start : start + BATCH_SIZE].contiguous().numpy())
    return {"data": digest.hexdigest()}


def write_captions(
    captioner: Captioner,
    dataset: Dataset,
    collator: CaptionCollator,
    generation: dict[str, Any],
    kept: UnfinishedCaptions,
) -> list[str]:
    """Captions each row; those that are kept are not written again, and the result is the same as without them.

    Args:
        captioner: whose captions.
        dataset: rows as the collator takes them.
        collator: gives the images and what stands before a caption.
        generation: settings of `generate` in place of the checkpoint's own.
        kept: gets the captions.

    Raises:
        DataError: if they cannot be kept.
    """
    done = len(kept.captions)
    if done:
        logger.info("Going on from %d captions of %d", done, len(dataset))

    def write() -> Iterator[str]:
        for start in range(done, len(dataset), BATCH_SIZE):
            rows = [dataset[row] for row in range(start, min(start + BATCH_SIZE, len(dataset)))]
            captions = _generate(captioner, rows, collator, generation, seed=start)
            kept.add(captions)
            yield from captions

    for _ in progress(write(), total=len(dataset) - done, desc="captions"):
        pass
    return kept.captions


@torch.inference_mode()
def _generate(
    captioner: Captioner, rows: list[dict], collator: CaptionCollator, generation: dict[str, Any], seed: int
) -> list[str]:
    device = captioner.model.device
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed)  # so that what is drawn does not depend on where a killed evaluation goes on
        return caption_batch(captioner.model, collator, rows, **generation)


def _as_line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=True) + "\n"


def _read(path: Path) -> tuple[dict[str, Any] | None, list[str]]:
    """The settings and the captions; without the rest of a line that a kill cut short."""
    try:
        first, *lines = path.read_text(encoding="utf-8").split("\n")
        settings = json.loads(first)
    except (OSError, ValueError):
        return None, []
    captions = []
    for line in lines:
        try:
            caption = json.loads(line)
        except ValueError:
            break
        captions.append(caption)
    return (settings, captions) if isinstance(settings, dict) else (None, [])

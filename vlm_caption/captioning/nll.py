"""The loss on captions, exact over tokens: all tokens weigh the same, however captions are batched."""

from collections.abc import Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch

from ..core.console import progress
from ..data.collator import CaptionCollator
from ..model.loss import IGNORE_INDEX
from ..towers.captioner import CaptionerForConditionalGeneration

if TYPE_CHECKING:
    from datasets import Dataset


@torch.no_grad()
def sum_nll(model: CaptionerForConditionalGeneration, batches: Iterable[dict[str, torch.Tensor]]) -> tuple[float, int]:
    """Returns the negative log-likelihood of all captions, in nats, and the number of their tokens, ends included.

    Args:
        model: The model, in any mode; it is evaluated in eval mode.
        batches: Batches of a `CaptionCollator`.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        total += model(**inputs, num_items_in_batch=1).loss.item()
        count += int((batch["shift_labels"] != IGNORE_INDEX).sum())
    model.train(training)
    return total, count


def caption_nll(
    model: CaptionerForConditionalGeneration,
    dataset: "Dataset",
    collator: CaptionCollator,
    batch_size: int,
    shuffle_images: bool = False,
) -> float:
    """Returns the mean negative log-likelihood of all captions, in nats per token, end tokens included.

    Args:
        model: The model, in any mode; it is evaluated in eval mode.
        dataset: Rows with `image`, `captions` and `index`, their place.
        collator: The dataset's collator.
        batch_size: The number of rows at a time.
        shuffle_images: Whether to give every caption another image. This raises the loss of a model that uses its
            images.

    Raises:
        ValueError: `shuffle_images` is set, and there is only one image.
    """
    others = rows_of_others(dataset["image"]) if shuffle_images else []

    def collate(start: int) -> dict[str, torch.Tensor]:
        rows = [dataset[i] for i in range(start, min(start + batch_size, len(dataset)))]
        if shuffle_images:
            rows = [{**row, "index": others[row["index"]]} for row in rows]
        return collator(rows)

    what = "loss, images shuffled" if shuffle_images else "loss"
    total, count = sum_nll(model, map(collate, progress(range(0, len(dataset), batch_size), desc=what)))
    return total / count


def rows_of_others(images: Sequence[Hashable]) -> list[int]:
    """Returns for each row a row of another image, half of the images away, because neighbours are often alike.

    Args:
        images: The image of each row; several rows may have the same image.

    Raises:
        ValueError: All rows have the same image.
    """
    rows_of: dict[Hashable, list[int]] = {}
    for row, image in enumerate(images):
        rows_of.setdefault(image, []).append(row)
    if len(rows_of) < 2:
        raise ValueError("There is no other image to shuffle a single one with.")
    groups = list(rows_of.values())
    others = [0] * len(images)
    for number, rows in enumerate(groups):
        theirs = groups[(number + len(groups) // 2) % len(groups)]
        for place, row in enumerate(rows):
            others[row] = theirs[place % len(theirs)]
    return others

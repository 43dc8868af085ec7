"""The loss on captions, exact over tokens: every caption's tokens weigh alike, however they are cut into batches."""

from collections.abc import Hashable, Iterable, Sequence

import torch
from datasets import Dataset

from ..core.console import progress
from ..data.collator import CaptionCollator
from ..model.loss import IGNORE_INDEX
from ..towers.captioner import CaptionerForConditionalGeneration


@torch.no_grad()
def sum_nll(model: CaptionerForConditionalGeneration, batches: Iterable[dict[str, torch.Tensor]]) -> tuple[float, int]:
    """Negative log-likelihood of all captions, in nats, and how many tokens they have, end tokens included.

    Args:
        model: in any mode; it is evaluated in eval mode.
        batches: as a `CaptionCollator` makes them.
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
    dataset: Dataset,
    collator: CaptionCollator,
    batch_size: int,
    shuffle_images: bool = False,
) -> float:
    """Mean negative log-likelihood of all captions, in nats a token, end tokens included.

    Args:
        model: in any mode; it is evaluated in eval mode.
        dataset: rows with `image`, `captions` and `index`, their place.
        collator: the dataset's.
        batch_size: rows at a time.
        shuffle_images: give every caption another image: a model that looks at its images loses by it.

    Raises:
        ValueError: if a single image is to be shuffled.
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
    """For each row one of another image, spread over all: half of the images away, so that neighbours stay apart.

    Args:
        images: of each row; several rows may have one image.

    Raises:
        ValueError: if all rows have the same.
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

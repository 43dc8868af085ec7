"""The loss on captions, exact over tokens: all tokens weigh the same, however captions are batched."""

from collections.abc import Callable, Hashable, Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import nn

from ..core.console import progress
from ..data.collator import CaptionCollator
from ..model.loss import IGNORE_INDEX
from ..towers.captioner import CaptionerForConditionalGeneration

if TYPE_CHECKING:
    from datasets import Dataset

# The most tokens of a batch of `paired_nll`, padding included. It bounds the logits, which are the most memory.
_TOKENS_A_BATCH = 2048


# Takes a model, a batch and a number, and returns the sum of the targets' losses divided by the number.
LossOf = Callable[[nn.Module, dict[str, torch.Tensor], torch.Tensor | int], torch.Tensor]


def model_loss(
    model: nn.Module, batch: dict[str, torch.Tensor], num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """Returns the model's own loss of a batch; see `LossOf`."""
    loss: torch.Tensor = model(**batch, num_items_in_batch=num_items_in_batch).loss
    return loss


@torch.no_grad()
def sum_nll(
    model: CaptionerForConditionalGeneration,
    batches: Iterable[dict[str, torch.Tensor]],
    loss_of: LossOf = model_loss,
) -> tuple[float, int]:
    """Returns the negative log-likelihood of all captions, in nats, and the number of their tokens, ends included.

    Args:
        model: The model, in any mode; it is evaluated in eval mode.
        batches: Batches of a `CaptionCollator`.
        loss_of: What is summed, by default the model's own loss.
    """
    training = model.training
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        total += loss_of(model, inputs, 1).item()
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


@torch.no_grad()
def paired_nll(
    model: CaptionerForConditionalGeneration, dataset: "Dataset", collator: CaptionCollator
) -> tuple[float, float | None]:
    """Returns both values of `caption_nll`, with the captions' own images and with other images, in one pass.

    An image's own captions and those that `rows_of_others` gives it are packed behind one copy of its image tokens,
    and rows of about the same length make a batch, so there is little padding.

    Args:
        model: The model, in any mode; it is evaluated in eval mode.
        dataset: Rows with `image`, `captions` and `index`, their place; with `questions`, if the collator asks them.
        collator: The dataset's collator, which takes all captions.

    Returns:
        The means over all tokens, in nats, end tokens included; the second is None if all rows have the same image.
    """
    rows = list(dataset)
    others = rows_of_others(dataset["image"]) if len(set(dataset["image"])) > 1 else []
    own_captions = [len(row["captions"]) for row in rows]
    texts = [name for name in ("captions", "questions") if name in dataset.column_names]
    paired = [{**row, **{name: list(row[name]) for name in texts}} for row in rows]
    for row, other in zip(rows, others, strict=False):
        for name in texts:
            paired[other][name] += row[name]
    lengths, own_tokens = [], []
    for segments, count in zip(collator.encode_captions(paired), own_captions, strict=True):
        lengths.append(len(collator.prefix) + sum(len(question) + len(caption) for question, caption in segments))
        own_tokens.append(sum(len(caption) for _, caption in segments[:count]))
    sums, counts = torch.zeros(2, dtype=torch.float64), torch.zeros(2, dtype=torch.long)
    training = model.training
    model.eval()
    for batch_rows in progress(_alike(lengths), desc="losses"):
        batch = collator([paired[row] for row in batch_rows])
        labels = batch.pop("shift_labels")
        del batch["labels"]
        inputs = {name: tensor.to(model.device) for name, tensor in batch.items()}
        logits = model(**inputs, use_cache=False).logits  # [B, M, V]
        targets = labels.to(logits.device)
        rows_losses = [  # one row at a time: float logits of a whole batch take hundreds of MB
            nn.functional.cross_entropy(row.float(), target, ignore_index=IGNORE_INDEX, reduction="none")
            for row, target in zip(logits, targets, strict=True)
        ]
        losses = torch.stack(rows_losses).cpu()  # [B, M]
        is_own = torch.arange(labels.shape[1]) < torch.tensor([[own_tokens[row]] for row in batch_rows])
        for kind, mask in enumerate((is_own, ~is_own)):
            sums[kind] += losses[mask].sum()
            counts[kind] += (labels[mask] != IGNORE_INDEX).sum()
    model.train(training)
    own, other = (sums / counts).tolist()
    return own, other if others else None


def _alike(lengths: Sequence[int]) -> list[list[int]]:
    """Returns the rows in batches of about the same length, the longest rows first."""
    batches: list[list[int]] = []
    room = 0
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        if room < 1:
            batches.append([])
            room = max(1, _TOKENS_A_BATCH // lengths[row])
        batches[-1].append(row)
        room -= 1
    return batches


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

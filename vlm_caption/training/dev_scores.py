"""How good a model is on dev images while it trains: the loss, and the CIDEr of its captions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object
from datasets import Dataset

from ..captioning.generation import caption_rows
from ..captioning.nll import LossOf, model_loss, sum_nll
from ..data.collator import CaptionCollator
from ..data.corpora import rows_of
from ..metrics.scoring import score
from ..towers.captioner import CaptionerForConditionalGeneration
from .sharding import is_sharded


def score_losses(
    model: CaptionerForConditionalGeneration,
    collator: CaptionCollator,
    dataset: Dataset,
    batch_size: int,
    loss_of: LossOf = model_loss,
) -> dict[str, float]:
    """Returns the mean loss of all captions, in nats a token, exact over tokens. Several processes share the images.

    It is called `eval_loss`. With several corpora, `eval_loss/NAME` is that of each.

    Args:
        model: The captioner, in any mode.
        collator: The dataset's collator.
        dataset: Rows with `image`, `captions` and `index`, and with `corpus` if there are several; the same in all
            processes.
        batch_size: Images at a time.
        loss_of: Which loss, by default the model's own.
    """
    process, processes = _share(model)
    parts: Mapping[str, Sequence[int]] = rows_of(dataset) or {"": range(len(dataset))}
    own = {}
    for name, rows in parts.items():
        mine = rows[process::processes]
        starts = range(0, len(mine), batch_size)
        batches = (collator([dataset[row] for row in mine[start : start + batch_size]]) for start in starts)
        own[name] = sum_nll(model, batches, loss_of)
    sums = gather_object([own])
    losses = {f"eval_loss/{name}": _mean([share[name] for share in sums]) for name in parts if name}
    return {"eval_loss": _mean([pair for share in sums for pair in share.values()])} | losses


def _mean(sums: Sequence[tuple[float, int]]) -> float:
    return sum(total for total, _ in sums) / sum(count for _, count in sums)


def score_cider(
    model: CaptionerForConditionalGeneration, collator: CaptionCollator, rows: Sequence[dict], batch_size: int
) -> float:
    """Returns the CIDEr, a fraction, of the model's captions of some rows. Several processes share them.

    Document frequencies are those of the rows' references: other rows, or more of them, give other values.

    Args:
        model: The captioner, in any mode.
        collator: The rows' collator.
        rows: Rows with `index` and `captions`, the references; the same in all processes.
        batch_size: Images at a time.
    """
    process, processes = _share(model)
    shares = gather_object([caption_rows(model, collator, rows[process::processes], batch_size)])
    captions = [""] * len(rows)
    for number in range(processes):
        captions[number::processes] = shares[number]
    return score(captions, [first_references(row) for row in rows], ("cider",)).corpus["cider"]


def _share(model: torch.nn.Module) -> tuple[int, int]:
    """Returns which share of the rows this process takes, and the number of shares."""
    # Processes that hold parts of one model must make the same calls, hence take all rows.
    if not torch.distributed.is_initialized() or is_sharded(model):
        return 0, 1
    return torch.distributed.get_rank(), torch.distributed.get_world_size()


def first_references(row: Mapping[str, Any]) -> list[str]:
    """Returns what a row's caption is compared with: its captions, or the answers to its first question."""
    if "questions" not in row:
        return row["captions"]
    pairs = zip(row["questions"], row["captions"], strict=True)
    return [answer for question, answer in pairs if question == row["questions"][0]]

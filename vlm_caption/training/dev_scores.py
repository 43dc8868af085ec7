"""CIDEr of a model's captions of dev images while it trains."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from accelerate.utils import gather_object

from ..captioning.generation import caption_rows
from ..data.collator import CaptionCollator
from ..data.places import Place
from ..metrics.scoring import score
from ..towers.captioner import CaptionerForConditionalGeneration


def score_cider(
    model: CaptionerForConditionalGeneration, collator: CaptionCollator, rows: Sequence[dict], batch_size: int
) -> float:
    """CIDEr, a fraction, of the model's captions of some rows. Of several processes each captions its share.

    Document frequencies are those of the rows' references: other rows, or more of them, give other values.

    Args:
        model, collator, batch_size: as of `caption_rows`.
        rows: with `index` and `captions`, the references; the same in all processes.
    """
    processes = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    process = torch.distributed.get_rank() if processes > 1 else 0
    shares = gather_object([caption_rows(model, collator, rows[process::processes], batch_size)])
    captions = [""] * len(rows)
    for number, share in enumerate(shares):
        captions[number::processes] = share
    return score(captions, [first_references(row) for row in rows], ("cider",)).corpus["cider"]


def row_name(image: str, is_vector: bool) -> str:
    """What people are told that a row is of: a picture's name without its folders, or what the vectors' file says."""
    return image if is_vector else Place.parse(image).short_name


def first_references(row: Mapping[str, Any]) -> list[str]:
    """What a row's caption of `caption_rows` is compared with: its captions, or the answers to its first question."""
    if "questions" not in row:
        return row["captions"]
    pairs = zip(row["questions"], row["captions"], strict=True)
    return [answer for question, answer in pairs if question == row["questions"][0]]

"""Shows captions while transformers' `generate` writes them, by beams too, for which it has no streamer."""

from collections.abc import Callable
from typing import Any

import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from ..towers.processor import CaptionerProcessor


def watch(processor: CaptionerProcessor, on_text: Callable[[list[str]], None]) -> StoppingCriteriaList:
    """Returns an argument of `generate` that stops nothing, and passes on the texts so far after each token.

    Args:
        processor: The model's processor.
        on_text: Gets the decoded text of each row: of each caption; or with beams of each beam, the likeliest first.
    """
    return StoppingCriteriaList([_Watcher(processor, on_text)])


class _Watcher(StoppingCriteria):
    def __init__(self, processor: CaptionerProcessor, on_text: Callable[[list[str]], None]) -> None:
        self.processor, self.on_text = processor, on_text

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.on_text(self.processor.batch_decode(input_ids, skip_special_tokens=True))
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)

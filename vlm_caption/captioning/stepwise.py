"""Writes captions token by token with a checkpoint's model, by `decoding` instead of transformers' `generate`.

The tokens are those of `generate`, which does more work: it reads a prompt once for every beam, goes on with rows that
have ended until the last one has, and keeps no log-probabilities. `benchmarks/captioning.py` compares the two.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from ..model.modeling_captioner import CACHE
from ..towers.captioner import CaptionerForConditionalGeneration
from .decoding import Logits, write
from .rules import DecodingSettings, split_settings

# Settings of sampling, which change nothing else.
_OF_SAMPLING = {"temperature", "top_k", "top_p"}

# On a CPU, MKL multiplies two or three rows in float32 more slowly than four: a third of a single picture's 3 beams.
_FAST_ROWS = 4


class ModelRows:
    """Token sequences that a model writes, with its cache; see [`Rows`].

    Args:
        model: The model, in eval mode.
        input_ids: The prompts, int64 [R, P], padded on the left.
        attention_mask: 0 at the padding, int64 [R, P].
        images: `image_features` or `pixel_values` of all images of the prompts, in order.
    """

    def __init__(
        self,
        model: CaptionerForConditionalGeneration,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        images: Mapping[str, Any],
    ) -> None:
        self._model, self._ids, self._images = model, input_ids, images
        self._mask = None if attention_mask.all() else attention_mask  # [R, S]
        self._pads = input_ids.device.type == "cpu" and model.core.language_model.dtype == torch.float32
        self._cache: dict[str, Any] = {}

    def read_prompts(self, top: int, full: bool) -> Logits:
        """See [`Rows`]."""
        positions = None if self._mask is None else (self._mask.cumsum(dim=1) - 1).clamp_min(0)
        return self._run(len(self._ids), top, full, input_ids=self._ids, position_ids=positions, **self._images)

    def advance(self, tokens: np.ndarray, rows: np.ndarray, top: int, full: bool) -> Logits:
        """See [`Rows`]."""
        count = len(rows)
        if self._pads and 1 < count < _FAST_ROWS:  # with copies of the last row
            tokens, rows = (np.pad(part, (0, _FAST_ROWS - count), mode="edge") for part in (tokens, rows))
        chosen = torch.from_numpy(rows).to(self._ids.device)
        for cache in self._cache.values():
            cache.reorder_cache(chosen)
        positions = None
        if self._mask is not None:
            mask = self._mask[chosen]
            positions = mask.sum(dim=1, keepdim=True)
            self._mask = nn.functional.pad(mask, (0, 1), value=1)
        ids = torch.from_numpy(tokens)[:, None].to(self._ids.device)
        return self._run(count, top, full, input_ids=ids, position_ids=positions)

    def _run(self, count: int, top: int, full: bool, **inputs: Any) -> Logits:
        outputs = self._model(**inputs, **self._cache, attention_mask=self._mask, use_cache=True, logits_to_keep=1)
        self._cache = {CACHE: outputs[CACHE]}
        logits = outputs.logits[:count, -1].float()  # [R, V]
        if top == 1:
            best, ids = logits.max(dim=1, keepdim=True)
        else:
            best, ids = logits.topk(min(top, logits.shape[1]))
        log_sum = logits.logsumexp(dim=1, keepdim=True)
        return Logits(*(part.cpu().numpy() for part in (log_sum, best, ids)), logits.cpu().numpy() if full else None)


def known_settings(model: CaptionerForConditionalGeneration, arguments: Mapping[str, Any]) -> DecodingSettings | None:
    """Returns the settings of `decoding` that stand for those of `generate`; None if it lacks one, or for sampling.

    Args:
        model: The model. What its generation settings leave open, those of its language model say.
        arguments: The arguments of `generate`, without inputs.

    Raises:
        ValueError: A setting is out of range.
    """
    own = (model.core.language_model.generation_config, model.generation_config)
    given = own[0].to_diff_dict() | own[1].to_diff_dict() | arguments
    known, unknown = split_settings(given)
    if unknown or known.get("do_sample") or "max_new_tokens" not in known or "cache_implementation" in arguments:
        return None
    return DecodingSettings(**{name: value for name, value in known.items() if name not in _OF_SAMPLING})


@torch.no_grad()
def write_stepwise(
    model: CaptionerForConditionalGeneration,
    inputs: Mapping[str, torch.Tensor],
    images: Mapping[str, Any],
    settings: DecodingSettings,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Writes the new tokens of prompts.

    Args:
        model: The model, in eval mode.
        inputs: `input_ids` and `attention_mask` of the prompts, int64 [B, P], padded on the left.
        images: `image_features` or `pixel_values` of all images of the prompts, in order.
        settings: How tokens are chosen.

    Returns:
        The tokens as `generate` returns them, int64 [B · num_return_sequences, M], and the log-probability of each, in
        nats, float32 [B · num_return_sequences, M]. Both are padded on the right, the latter with 0.

    Raises:
        ValueError: Images and placeholders do not match, or prompt and new tokens exceed the model's positions.
    """
    count, length = inputs["input_ids"].shape
    placeholders = inputs["input_ids"][0].tolist().count(model.config.image_token_id)
    model.check_length(length, settings.max_new_tokens, placeholders // model.config.image_seq_length)
    rows = ModelRows(model, inputs["input_ids"], inputs["attention_mask"], images)
    written = [found for own in write(rows, count, settings, np.random.default_rng()) for found in own]
    pad = settings.pad_token_id
    pad = next(iter(settings.eos_token_id), 0) if pad is None else pad
    return (
        _padded([found.ids for found in written], pad).to(model.device),
        _padded([found.log_probs for found in written], 0.0).to(model.device),
    )


def _padded(rows: Sequence[Sequence[float]], value: float) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)

"""Writes several captions of each image for training on rewards: samples of the model's distribution, or beams.

Training on samples needs captions as the model would write them at random: no penalty, no blocked repeats, no cut to
the most probable tokens. It needs many of them, so the image and the prompt are encoded once for all captions of an
image, and captions that have ended are computed no further. `generate` of transformers encodes them once for each
caption, and goes on with all rows until the last one has ended: `benchmarks/sampling.py` compares the two.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..model.modeling_captioner import CACHE
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.composition import MAX_NEW_TOKENS
from .generation import find_ends, write_tokens


@dataclass(frozen=True)
class Samples:
    """Captions of images: those of the first image, then those of the second, and so on.

    Attributes:
        token_ids: The tokens of each caption, including its end token if it came to its end.
        ended: Whether each caption came to its end and was not cut at the maximum length.
    """

    token_ids: list[list[int]]
    ended: list[bool]


@torch.no_grad()
def sample_captions(
    model: CaptionerForConditionalGeneration,
    prefix: Sequence[int],
    images: Mapping[str, Any],
    count: int,
    temperature: float,
    generator: torch.Generator,
    max_new_tokens: int | None = None,
) -> Samples:
    """Samples captions of images.

    Args:
        model: The model, in eval mode. Its generation settings say which tokens end a caption and how many a caption
            has at most.
        prefix: The token ids before each caption, with the image's placeholders.
        images: `image_features` or `pixel_values` of the images, on the model's device.
        count: The number of captions of each image.
        temperature: What logits are divided by.
        generator: The random numbers, on the CPU.
        max_new_tokens: The largest number of tokens of a caption, if less than in the generation settings.
    """
    longest, end_ids = _bounds(model, max_new_tokens)
    ends = torch.tensor(sorted(end_ids), dtype=torch.long, device=model.device)
    [number] = {len(tensor) for tensor in images.values()}
    prompt = torch.tensor([list(prefix)] * number, device=model.device)
    with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
        outputs = model(input_ids=prompt, **images, use_cache=True, logits_to_keep=1)
        cache = outputs[CACHE]
        cache.batch_repeat_interleave(count)
        logits = outputs.logits[:, -1].repeat_interleave(count, dim=0)  # [R, V]
        draws = torch.rand(longest, len(logits), generator=generator).to(model.device)
        token_ids = torch.full((len(logits), longest), -1, device=model.device)
        rows = torch.arange(len(logits), device=model.device)  # those that have not ended
        for step in range(longest):
            drawn = draw_tokens(logits / temperature, draws[step, rows])
            token_ids[rows, step] = drawn
            goes_on = (~torch.isin(drawn, ends)).nonzero()[:, 0]
            if not len(goes_on) or step + 1 == longest:
                break
            if len(goes_on) < len(rows):
                cache.batch_select_indices(goes_on)
                rows, drawn = rows[goes_on], drawn[goes_on]
            logits = model(input_ids=drawn[:, None], **{CACHE: cache}, use_cache=True).logits[:, -1]
    captions = [[token for token in row if token >= 0] for row in token_ids.tolist()]
    return Samples(captions, [caption[-1] in end_ids for caption in captions])


@torch.no_grad()
def beam_captions(
    model: CaptionerForConditionalGeneration,
    prefix: Sequence[int],
    images: Mapping[str, Any],
    count: int,
    max_new_tokens: int | None = None,
) -> Samples:
    """Writes the most probable captions of images: all beams of a beam search.

    Args:
        model: The model, in eval mode. Its generation settings apply, except for the number of beams.
        prefix: The token ids before each caption, with the image's placeholders.
        images: `image_features` or `pixel_values` of the images, on the model's device.
        count: The number of beams, and of captions of each image.
        max_new_tokens: The largest number of tokens of a caption, if less than in the generation settings.
    """
    [number] = {len(tensor) for tensor in images.values()}
    prompt = torch.tensor([list(prefix)] * number, device=model.device)
    arguments = {
        "do_sample": False,
        "num_beams": count,
        "num_return_sequences": count,
        "max_new_tokens": _bounds(model, max_new_tokens)[0],
    }
    inputs = {"input_ids": prompt, "attention_mask": torch.ones_like(prompt)}
    with torch.compiler.set_stance("force_eager"):  # every new length would be compiled anew
        new_ids, _ = write_tokens(model, inputs, images, arguments)
    is_end, is_caption = find_ends(model, new_ids, arguments)
    captions = [row[own].tolist() for row, own in zip(new_ids, is_caption, strict=True)]
    return Samples(captions, is_end.any(dim=1).tolist())


def _bounds(model: CaptionerForConditionalGeneration, max_new_tokens: int | None) -> tuple[int, set[int]]:
    """Returns the largest number of tokens of a caption, and the tokens that end one."""
    longest = model.generation_config.max_new_tokens or MAX_NEW_TOKENS
    own: Any = model.generation_config.eos_token_id
    end_ids = {token for token in (own if isinstance(own, list) else [own]) if token is not None}
    return min(longest, max_new_tokens or longest), end_ids


def draw_tokens(logits: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Draws a token of each row's distribution, int64 [R].

    It inverts the cumulative distribution: one random number a row, where `torch.multinomial` takes one for each token
    of the vocabulary, which on a CPU takes longer than the language model's head.

    Args:
        logits: float [R, V].
        draws: Uniform random numbers in [0, 1), float32 [R].
    """
    cumulative = torch.softmax(logits.float(), dim=-1).cumsum(dim=-1)
    # In (0, total], so a token without probability is never drawn.
    thresholds = (1 - draws[:, None]) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, thresholds)[:, 0]

"""Keys and values of the image in front of each layer of the language model, beside its tokens in the input.

Prefix tuning puts learned keys and values in front of those of the tokens in every layer (Li and Liang 2021,
"Prefix-Tuning", arXiv:2101.00190). Here they are computed from the image tokens, so each layer can look at the image
itself, and not only at what the frozen layers before it made of the input. The matrices have a low rank, because there
are two of them for each layer.

Shapes in comments: I images, N image tokens an image, D the width of the embeddings, R the rank, L layers, H heads of
keys and values, E the width of a head; B rows, T new tokens, S tokens with those in the cache.
"""

from typing import Any, cast

import torch
from torch import nn
from transformers import DynamicCache

from .configuration_captioner import CaptionerConfig

# An optimizer such as Adam moves all weights equally fast, and keys and values are larger than a projector's weights.
_SCALE = 5.0


class LayerPrefix(nn.Module):
    """Image tokens → layer norm → Linear(D, R) → GELU → keys and values of all layers."""

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        layers, heads, width = config.text_cache_shape
        self.heads = heads
        self.down = nn.Linear(config.text_embedding_size, cast(int, config.layer_prefix_rank))
        self.up = nn.Parameter(torch.zeros(layers, 2, heads * width, self.down.out_features))
        self.bias = nn.Parameter(torch.zeros(layers, 2, heads * width))

    def forward(self, image_embeds: torch.Tensor) -> torch.Tensor:
        """Returns keys and values, in this order, for each layer: float [I, N, D] → float [L, 2, I, H, N, E]."""
        normed = nn.functional.layer_norm(image_embeds, image_embeds.shape[-1:])
        hidden = nn.functional.gelu(self.down(normed.to(self.down.weight)))  # [I, N, R]
        both = torch.einsum("inr,lkdr->lkind", hidden, self.up) + self.bias[:, :, None, None]
        return (_SCALE * both).unflatten(-1, (self.heads, -1)).transpose(3, 4)

    @torch.no_grad()
    def fused(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns the last layer as one matrix, float [R, L · 2 · H · E], and its bias; the scale is in them."""
        weight = self.up.permute(3, 0, 1, 2).flatten(1)
        return _SCALE * weight, _SCALE * self.bias.flatten()

    def fill_cache(self, cache: Any, image_embeds: torch.Tensor, rows: int, dtype: torch.dtype) -> Any:
        """Puts the keys and values of images into a cache.

        Args:
            cache: An empty cache of transformers; None for a new one.
            image_embeds: The images of all rows, as many for each, float [I, N, D].
            rows: B.
            dtype: That of the language model's own keys and values.

        Returns:
            The cache, whose rows begin with I / B · N keys and values in each layer.
        """
        cache = DynamicCache() if cache is None else cache
        for layer, both in enumerate(self(image_embeds).to(dtype)):
            # [I, H, N, E] → [B, I / B, H, N, E] → [B, H, I / B · N, E]
            keys, values = (part.unflatten(0, (rows, -1)).transpose(1, 2).flatten(2, 3) for part in both)
            cache.update(keys, values, layer)
        return cache


def make_room(inputs: dict[str, Any], cached: int, prefix: int | None = None) -> dict[str, Any]:
    """Returns a language model's inputs with masks and positions that count the prefix as tokens in front.

    Args:
        inputs: `inputs_embeds` [B, T, D], and if given `attention_mask` [B, S] or [B, 1, T, S] and `position_ids`
            [B, T], without the prefix.
        cached: The length of the cache, prefix included.
        prefix: The length of the prefix; None where the mask has to tell.
    """
    inputs = dict(inputs)
    mask, positions = inputs.get("attention_mask"), inputs.get("position_ids")
    if mask is not None:
        missing = cached + inputs["inputs_embeds"].shape[1] - mask.shape[-1]
        is_added = mask.ndim == 4 and mask.dtype.is_floating_point  # to the scores: 0 lets a token look
        inputs["attention_mask"] = nn.functional.pad(mask, (missing, 0), value=0 if is_added else 1)
        prefix = missing if prefix is None else prefix
    if positions is not None and prefix:
        inputs["position_ids"] = positions + prefix
    return inputs


__all__ = ["LayerPrefix", "make_room"]

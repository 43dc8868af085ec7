"""The projectors, which turn the vision tower's image tokens into embeddings of the language model.

A projector takes float [I, N, D_vision] and returns float [I, M, D_text]. `CaptionerConfig` holds its settings and
knows how many tokens M it makes of N. Shapes in comments: I images, N tokens in, M tokens out, K learned tokens,
W a width. `projector_init.py` initialises them.
"""

import math
from typing import cast

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_captioner import CaptionerConfig


def _hidden_size(config: CaptionerConfig, width: int) -> int | None:
    """Returns the width of the hidden layer of a projector whose input has this width; None without such a layer."""
    if config.projector_hidden_size is not None or config.projector_expansion is None:
        return config.projector_hidden_size
    return config.projector_expansion * width


class LinearProjector(nn.Module):
    """Linear(in, out): one image token to one embedding (Merullo et al. 2022, "LiMBeR"; the first LLaVA)."""

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        self.linear = nn.Linear(config.vision_feature_size, config.text_embedding_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [..., D_vision] → float [..., D_text]."""
        return self.dropout(self.linear(image_features))


class MultiModalProjector(nn.Module):
    """Linear(in, hidden) → GELU → Linear(hidden, out): one image token to one embedding (LLaVA-1.5; seemore)."""

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        width = config.vision_feature_size
        hidden = cast(int, _hidden_size(config, width))
        self.linear_1 = nn.Linear(width, hidden)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, config.text_embedding_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [..., D_vision] → float [..., D_text]."""
        return self.dropout(self.linear_2(self.act(self.linear_1(image_features))))


class PrefixMLPProjector(nn.Module):
    """An MLP from one pooled vector to K embeddings (the MLP mapping network of Mokady et al. 2021, "ClipCap").

    As in the authors' code, the hidden layer is half as wide as the K embeddings together, and is activated by tanh.
    """

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        self.width = config.text_embedding_size
        out = cast(int, config.projector_tokens) * self.width
        self.linear_1 = nn.Linear(config.vision_feature_size, out // 2)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(out // 2, out)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [I, 1, D_vision] → float [I, K, D_text]."""
        hidden = self.act(self.linear_1(image_features))
        return self.dropout(self.linear_2(hidden)).unflatten(-1, (-1, self.width)).flatten(1, 2)


class PixelShuffleProjector(nn.Module):
    """Joins r × r neighbouring patches into one token, followed by a linear layer, or by an MLP if that has a width.

    This is Shi et al. 2016 in reverse (space to depth), as in Idefics3 and nanoVLM (linear) and InternVL (MLP). Here,
    the linear one has a bias, which absorbs the features' mean. A pooled vector in front of the patches has a linear
    layer of its own.
    """

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        self.factor = cast(int, config.projector_shuffle)
        width, out = self.factor**2 * config.vision_feature_size, config.text_embedding_size
        hidden = _hidden_size(config, width)
        self.linear_pooled = nn.Linear(config.vision_feature_size, out) if config.pooled_in_front else None
        self.linear_1 = nn.Linear(width, hidden or out)
        self.linear_2 = None if hidden is None else nn.Linear(hidden, out)
        self.act = None if hidden is None else ACT2FN[config.projector_hidden_act]

    def arrange(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [..., g·g, D] → float [..., (g/r)·(g/r), r·r·D], row by row; so are the patches within a token.

        Raises:
            ValueError: The patches do not form a square whose side r divides.
        """
        grid, factor = math.isqrt(image_features.shape[-2]), self.factor
        if grid**2 != image_features.shape[-2] or grid % factor:
            raise ValueError(
                f"projector_shuffle={factor} takes a square of patches whose side it divides, and an image has "
                f"{image_features.shape[-2]} of them: choose another projector_shuffle or image_grid."
            )
        cells = image_features.unflatten(-2, (grid // factor, factor, grid // factor, factor))
        return cells.transpose(-4, -3).flatten(-3).flatten(-3, -2)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [I, (1 +) N, D_vision] → float [I, (1 +) N/r², D_text]."""
        patches = image_features if self.linear_pooled is None else image_features[..., 1:, :]
        tokens = self.linear_1(self.arrange(patches))
        if self.act is not None and self.linear_2 is not None:
            tokens = self.linear_2(self.act(tokens))
        if self.linear_pooled is not None:
            tokens = torch.cat([self.linear_pooled(image_features[..., :1, :]), tokens], dim=-2)
        return self.dropout(tokens)


class Attention(nn.Module):
    """Multi-head attention between tokens of width W; as in ClipCap, without biases on queries, keys and values."""

    def __init__(self, width: int, config: CaptionerConfig):
        super().__init__()
        self.heads = cast(int, config.projector_heads)
        if width % self.heads:
            raise ValueError(
                f"projector_heads={self.heads} does not divide the width of the {config.projector} projector, which "
                f"is {width}: choose a number that does."
            )
        self.dropout = config.projector_dropout
        self.queries = nn.Linear(width, width, bias=False)
        self.keys_values = nn.Linear(width, 2 * width, bias=False)
        self.out = nn.Linear(width, width)

    def forward(self, tokens: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """float [I, M, W] and what they attend to, float [I, N, W] → float [I, M, W]."""
        keys, values = self.keys_values(context).chunk(2, dim=-1)
        heads = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (self.queries(tokens), keys, values))
        dropout = self.dropout if self.training else 0.0
        mixed = nn.functional.scaled_dot_product_attention(*heads, dropout_p=dropout)  # [I, heads, M, W/heads]
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A pre-norm transformer layer: attention, then an MLP of k times the width."""

    def __init__(self, width: int, config: CaptionerConfig):
        super().__init__()
        hidden = cast(int, config.projector_expansion) * width
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = Attention(width, config)
        self.linear_1 = nn.Linear(width, hidden)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, width)
        self.dropout = nn.Dropout(config.projector_dropout)

    def forward(self, tokens: torch.Tensor, context: torch.Tensor | None = None) -> torch.Tensor:
        """float [I, M, W] → float [I, M, W]; the tokens attend to each other and, if given, to the context."""
        normed = self.norm_1(tokens)
        context = normed if context is None else torch.cat([context, normed], dim=1)
        tokens = tokens + self.dropout(self.attention(normed, context))
        return tokens + self.dropout(self.linear_2(self.act(self.linear_1(self.norm_2(tokens)))))


class TransformerProjector(nn.Module):
    """A transformer over the image's prefix and K learned tokens; its outputs for the learned tokens are the image.

    This is the transformer mapping network of Mokady et al. 2021, "ClipCap": at the language model's width, with relu
    and without a final norm. One linear layer turns a pooled vector into a prefix of K tokens. Patches, or several
    vectors, become one token each and are then a set: the layers do not know their positions.
    """

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.width = config.text_embedding_size
        tokens = cast(int, config.projector_tokens)
        prefix = tokens if config.takes_one_vector else 1
        self.linear = nn.Linear(config.vision_feature_size, prefix * self.width)
        self.learned_tokens = nn.Parameter(torch.randn(tokens, self.width))
        self.layers = nn.ModuleList(Layer(self.width, config) for _ in range(cast(int, config.projector_layers)))

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [I, N, D_vision] → float [I, K, D_text]."""
        prefix = self.linear(image_features).unflatten(-1, (-1, self.width)).flatten(1, 2)
        tokens = torch.cat([prefix, self.learned_tokens.expand(len(prefix), -1, -1)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens[:, prefix.shape[1] :]


class ResamplerProjector(nn.Module):
    """K learned queries that attend to the image's tokens, layer by layer, and become K embeddings.

    This is the Perceiver Resampler of Alayrac et al. 2022, "Flamingo": keys and values come from the image and from
    the queries, at the vision tower's width. The image's tokens are a set: the layers do not know their positions.
    """

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        width = config.vision_feature_size
        self.linear_1, self.norm_1 = nn.Linear(width, width), nn.LayerNorm(width)
        # Small, as in Li et al. 2023, "BLIP-2": the image makes them differ from the start.
        self.learned_tokens = nn.Parameter(0.02 * torch.randn(cast(int, config.projector_tokens), width))
        self.layers = nn.ModuleList(Layer(width, config) for _ in range(cast(int, config.projector_layers)))
        self.norm_2, self.linear_2 = nn.LayerNorm(width), nn.Linear(width, config.text_embedding_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [I, N, D_vision] → float [I, K, D_text]."""
        context = self.norm_1(self.linear_1(image_features))
        tokens = self.learned_tokens.expand(len(context), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, context)
        return self.linear_2(self.norm_2(tokens))


PROJECTORS: dict[str, type[nn.Module]] = {
    "linear": LinearProjector,
    "mlp": MultiModalProjector,
    "prefix_mlp": PrefixMLPProjector,
    "transformer": TransformerProjector,
    "resampler": ResamplerProjector,
    "pixel_shuffle": PixelShuffleProjector,
}


def build_projector(config: CaptionerConfig) -> nn.Module:
    """Builds the projector that the config names, with fresh weights."""
    return PROJECTORS[config.projector](config)


__all__ = ["PROJECTORS", "MultiModalProjector", "build_projector"]

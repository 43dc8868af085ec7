"""The projectors: what is trained between the vision tower's image tokens and the language model's embeddings.

A projector takes float [I, N, D_vision] and gives float [I, M, D_text]. Its settings, their defaults, and how many
tokens M it makes of N are `CaptionerConfig`'s. Shapes in comments: I images, N tokens in, M tokens out, K learned
tokens, W a width.
"""

import math
from typing import cast

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN

from .configuration_captioner import CaptionerConfig


class Projector(nn.Module):
    """What all projectors share: how they start.

    Subclasses name the layer that meets the features and, unless they scale their output in another way, the layer
    that writes the tokens.
    """

    input_layer: str
    output_layer: str
    # Images that the scale of the output is measured on; None: on all that `fit_scale` is given.
    scale_sample: int | None = None
    # Standard deviation of the learned tokens, where there are any, before `fit_scale`.
    learned_std: float = 1.0

    def summary(self) -> str:
        """What it is made of, in one line."""
        raise NotImplementedError

    def arrange(self, image_features: torch.Tensor) -> torch.Tensor:
        """The features as the input layer gets them: as they are, unless a projector puts several side by side."""
        return image_features

    @torch.no_grad()
    def init_layer(self, layer: nn.Module) -> bool:
        """Starts one layer of this projector. Returns False for a kind that it leaves to transformers.

        The towers' own schemes (GPT-2's normal of 0.02) are too small for layers that must reach the scale of
        embeddings: linear layers get PyTorch's default, uniform in ±1/sqrt(fan_in).
        """
        if isinstance(layer, nn.Linear):
            bound = layer.in_features**-0.5
            init.uniform_(layer.weight, -bound, bound)
            if layer.bias is not None:
                init.uniform_(layer.bias, -bound, bound)
        elif layer is self and hasattr(self, "learned_tokens"):
            init.normal_(cast(torch.Tensor, self.learned_tokens), std=self.learned_std)
        else:
            return False
        return True

    @torch.no_grad()
    def fit_scale(self, image_features: torch.Tensor, output_std: float) -> None:
        """Rescales the fresh weights so that standardised features go in and embeddings of `output_std` come out.

        Data-dependent initialisation (Salimans and Kingma 2016, "Weight Normalization", section 3): the first layer
        absorbs the features' mean and standard deviation, and what writes the tokens is scaled on a sample of them.
        The architecture and its parameter count stay what they were.

        Args:
            image_features: float [..., N, D_vision], a sample of what the vision tower writes.
            output_std: the wanted standard deviation of the projected tokens.
        """
        layer = cast(nn.Linear, self.get_submodule(self.input_layer))
        image_features = image_features.to(layer.weight)
        rows = self.arrange(image_features).flatten(0, -2)  # [S, width of the layer]
        mean, std = rows.mean(0), rows.std(0, correction=0)
        std = torch.where(std > 1e-6, std, 1.0)  # what never varies in the sample is centred, not blown up
        layer.weight.div_(std)
        layer.bias.sub_(layer.weight @ mean)
        was_training = self.training
        self.eval()  # dropout would add its own spread
        sample = image_features[:: max(1, len(image_features) // (self.scale_sample or len(image_features)))]
        self.scale_output(output_std / self(sample).std().item())
        self.train(was_training)

    def scale_output(self, scale: float) -> None:
        """Multiplies the projected tokens by `scale`, by way of the weights."""
        layer = cast(nn.Linear, self.get_submodule(self.output_layer))
        layer.weight.mul_(scale)
        layer.bias.mul_(scale)


class LinearProjector(Projector):
    """Linear(in, out): one image token to one embedding (Merullo et al. 2022, "LiMBeR"; the first LLaVA)."""

    input_layer = output_layer = "linear"

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        self.linear = nn.Linear(config.vision_feature_size, config.text_embedding_size)

    def summary(self) -> str:
        return _layers(self.linear)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [..., D_vision] → float [..., D_text]."""
        return self.dropout(self.linear(image_features))


class MultiModalProjector(Projector):
    """Linear(in, k·in) → GELU → Linear(k·in, out): a token to an embedding (LLaVA-1.5; with dropout, seemore)."""

    input_layer, output_layer = "linear_1", "linear_2"

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        width = config.vision_feature_size
        hidden = cast(int, config.projector_expansion) * width
        self.linear_1 = nn.Linear(width, hidden)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(hidden, config.text_embedding_size)
        self.act_name = config.projector_hidden_act

    def summary(self) -> str:
        return _layers(self.linear_1, self.act_name, self.linear_2)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [..., D_vision] → float [..., D_text]."""
        return self.dropout(self.linear_2(self.act(self.linear_1(image_features))))


class PrefixMLPProjector(Projector):
    """One pooled vector to K embeddings by an MLP (Mokady et al. 2021, "ClipCap", its MLP mapping network).

    The hidden layer is half as wide as the K embeddings together, and its activation is tanh, as in the authors' code.
    """

    input_layer, output_layer = "linear_1", "linear_2"

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        self.width = config.text_embedding_size
        out = cast(int, config.projector_tokens) * self.width
        self.linear_1 = nn.Linear(config.vision_feature_size, out // 2)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(out // 2, out)
        self.act_name = config.projector_hidden_act

    def summary(self) -> str:
        tokens = self.linear_2.out_features // self.width
        return f"{_layers(self.linear_1, self.act_name, self.linear_2)}, {tokens} tokens of {self.width}"

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [I, 1, D_vision] → float [I, K, D_text]."""
        hidden = self.act(self.linear_1(image_features))
        return self.dropout(self.linear_2(hidden)).unflatten(-1, (-1, self.width)).flatten(1, 2)


class PixelShuffleProjector(Projector):
    """r × r neighbouring patches side by side in one token, then a linear layer, or an MLP where it is given a width.

    Shi et al. 2016 in reverse (space to depth), as in Idefics3 and nanoVLM (linear) and InternVL (MLP). The linear one
    has a bias here, which absorbs the features' mean.
    """

    input_layer = output_layer = "linear_1"

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.dropout = nn.Dropout(config.projector_dropout)
        self.factor = cast(int, config.projector_shuffle)
        width, out = self.factor**2 * config.vision_feature_size, config.text_embedding_size
        self.act_name = config.projector_hidden_act
        if config.projector_expansion is None:
            self.linear_1 = nn.Linear(width, out)
        else:
            self.linear_1 = nn.Linear(width, config.projector_expansion * width)
            self.act = ACT2FN[self.act_name]
            self.linear_2 = nn.Linear(config.projector_expansion * width, out)
            self.output_layer = "linear_2"

    def summary(self) -> str:
        names = [self.linear_1] if self.act_name is None else [self.linear_1, self.act_name, self.linear_2]
        return f"pixel shuffle by {self.factor} → {_layers(*names)}"

    def arrange(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [..., g·g, D] → float [..., (g/r)·(g/r), r·r·D], in rows; inside a token its patches in rows as well.

        Raises:
            ValueError: if the patches are no square that r divides.
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
        """float [I, N, D_vision] → float [I, N/r², D_text]."""
        tokens = self.linear_1(self.arrange(image_features))
        return self.dropout(tokens if self.act_name is None else self.linear_2(self.act(tokens)))


class Attention(nn.Module):
    """Multi-head attention between tokens of width W; queries, keys and values without biases, as in ClipCap."""

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
        """float [I, M, W] and what they look at, float [I, N, W] → float [I, M, W]."""
        queries = self.queries(tokens)
        keys, values = self.keys_values(context).chunk(2, dim=-1)
        split = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in (queries, keys, values)
        )  # [I, heads, ·, ·]
        mixed = nn.functional.scaled_dot_product_attention(*split, dropout_p=self.dropout if self.training else 0.0)
        return self.out(mixed.transpose(1, 2).flatten(2))


class Layer(nn.Module):
    """A transformer layer, normalised before its parts: attention, then an MLP of k times the width."""

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
        """float [I, M, W] → float [I, M, W]; the tokens look at each other and, if there is one, at the context."""
        normed = self.norm_1(tokens)
        context = normed if context is None else torch.cat([context, normed], dim=1)
        tokens = tokens + self.dropout(self.attention(normed, context))
        return tokens + self.dropout(self.linear_2(self.act(self.linear_1(self.norm_2(tokens)))))


class TransformerProjector(Projector):
    """A transformer over the image's prefix and K learned tokens; what becomes of the learned ones is the image.

    Mokady et al. 2021, "ClipCap", its transformer mapping network: at the language model's width, with relu, without a
    norm at its end. A pooled vector becomes a prefix of K tokens by one linear layer. Patches, or several vectors,
    become one token each, and are then a set: nothing here tells their places but what was written into them before.
    """

    input_layer = "linear"
    scale_sample = 64

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        self.width = config.text_embedding_size
        tokens = cast(int, config.projector_tokens)
        prefix = tokens if config.takes_one_vector else 1
        self.linear = nn.Linear(config.vision_feature_size, prefix * self.width)
        self.learned_tokens = nn.Parameter(self.learned_std * torch.randn(tokens, self.width))
        self.layers = nn.ModuleList(Layer(self.width, config) for _ in range(cast(int, config.projector_layers)))

    def summary(self) -> str:
        tokens = len(self.learned_tokens)
        return f"{_layers(self.linear)}, {tokens} learned tokens → {_count(self.layers)} of {self.width}"

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [I, N, D_vision] → float [I, K, D_text]."""
        prefix = self.linear(image_features).unflatten(-1, (-1, self.width)).flatten(1, 2)
        tokens = torch.cat([prefix, self.learned_tokens.expand(len(prefix), -1, -1)], dim=1)
        for layer in self.layers:
            tokens = layer(tokens)
        return tokens[:, prefix.shape[1] :]

    def scale_output(self, scale: float) -> None:
        """As of `Projector`: layers read tokens through a norm, so what starts them and what is added is scaled."""
        self.learned_tokens.mul_(scale)
        for linear in [self.linear, *(part for layer in self.layers for part in _writers(cast(Layer, layer)))]:
            linear.weight.mul_(scale)
            linear.bias.mul_(scale)


class ResamplerProjector(Projector):
    """K learned queries look at the image's tokens, layer by layer, and become K embeddings.

    The Perceiver Resampler of Alayrac et al. 2022, "Flamingo": keys and values are those of the image and of the
    queries, at the vision tower's width. The image's tokens are a set to it. The queries start small, as in Li et al.
    2023, "BLIP-2", so that from the start it is the image that makes them differ.
    """

    input_layer, output_layer = "linear_1", "linear_2"
    scale_sample = 64
    learned_std = 0.02

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        width = config.vision_feature_size
        self.linear_1, self.norm_1 = nn.Linear(width, width), nn.LayerNorm(width)
        self.learned_tokens = nn.Parameter(self.learned_std * torch.randn(cast(int, config.projector_tokens), width))
        self.layers = nn.ModuleList(Layer(width, config) for _ in range(cast(int, config.projector_layers)))
        self.norm_2, self.linear_2 = nn.LayerNorm(width), nn.Linear(width, config.text_embedding_size)

    def summary(self) -> str:
        tokens, width = self.learned_tokens.shape
        return f"{tokens} learned queries, {_count(self.layers)} of {width} → {_layers(self.linear_2)}"

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [I, N, D_vision] → float [I, K, D_text]."""
        context = self.norm_1(self.linear_1(image_features))
        tokens = self.learned_tokens.expand(len(context), -1, -1)
        for layer in self.layers:
            tokens = layer(tokens, context)
        return self.linear_2(self.norm_2(tokens))


PROJECTORS: dict[str, type[Projector]] = {
    "linear": LinearProjector,
    "mlp": MultiModalProjector,
    "prefix_mlp": PrefixMLPProjector,
    "transformer": TransformerProjector,
    "resampler": ResamplerProjector,
    "pixel_shuffle": PixelShuffleProjector,
}


def build_projector(config: CaptionerConfig) -> Projector:
    """The projector that the config names, with fresh weights.

    Raises:
        ValueError: if the towers' widths and the settings do not go together.
    """
    return PROJECTORS[config.projector](config)


def _writers(layer: Layer) -> tuple[nn.Linear, nn.Linear]:
    """The two linear layers whose outputs are added to the stream of tokens."""
    return layer.attention.out, layer.linear_2


def _layers(*parts: nn.Linear | str | None) -> str:
    names = (
        f"Linear({part.in_features}, {part.out_features})" if isinstance(part, nn.Linear) else str(part).upper()
        for part in parts
    )
    return " → ".join(names)


def _count(layers: nn.ModuleList) -> str:
    return f"{len(layers)} transformer layer{'s' if len(layers) > 1 else ''}"


__all__ = ["PROJECTORS", "MultiModalProjector", "Projector", "build_projector"]

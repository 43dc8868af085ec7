"""How projectors start: their random weights, the scale that is fitted to the data, and a line that describes them."""

from typing import Any, cast

import torch
from torch import nn
from transformers import initialization as init

from .projectors import LinearProjector, PixelShuffleProjector, ResamplerProjector, TransformerProjector

# The standard deviation of the learned tokens before `fit_scale`.
_LEARNED_STD: dict[type[nn.Module], float] = {TransformerProjector: 1.0, ResamplerProjector: 0.02}
# The number of images on which a projector with transformer layers measures the scale of its output.
_SCALE_SAMPLE = 64


@torch.no_grad()
def init_layer(projector: nn.Module, layer: nn.Module) -> bool:
    """Initialises one layer of a projector. Returns False for a kind that is left to transformers.

    The towers' own schemes (GPT-2's normal of 0.02) are too small for layers that must reach the scale of embeddings:
    linear layers get PyTorch's default, uniform in ±1/sqrt(fan_in).
    """
    if isinstance(layer, nn.Linear):
        bound = layer.in_features**-0.5
        init.uniform_(layer.weight, -bound, bound)
        if layer.bias is not None:
            init.uniform_(layer.bias, -bound, bound)
    elif layer is projector and type(projector) in _LEARNED_STD:
        init.normal_(cast(torch.Tensor, projector.learned_tokens), std=_LEARNED_STD[type(projector)])
    else:
        return False
    return True


@torch.no_grad()
def fit_scale(projector: nn.Module, image_features: torch.Tensor, output_std: float) -> None:
    """Rescales fresh weights so that standardised features go in and embeddings of `output_std` come out.

    This is data-dependent initialisation (Salimans and Kingma 2016, "Weight Normalization", section 3). The first
    layer absorbs the features' mean and standard deviation, and the layers that write the tokens are scaled on a
    sample. The architecture and the number of parameters stay the same.

    Args:
        projector: A projector that is not trained yet.
        image_features: Features of a sample of images, float [..., N, D_vision].
        output_std: The wanted standard deviation of the projected tokens.
    """
    layer = input_layer(projector)
    image_features = image_features.to(layer.weight)
    _standardise(layer, input_rows(projector, image_features))
    was_training = projector.training
    projector.eval()  # dropout would add its own spread
    size = _SCALE_SAMPLE if type(projector) in _LEARNED_STD else len(image_features)
    sample = image_features[:: max(1, len(image_features) // size)]
    pooled = linear_pooled(projector)
    if pooled is not None:
        _standardise(pooled, image_features[..., :1, :])
        _scale(pooled, output_std / pooled(sample[..., :1, :]).std().item())
    tokens = projector(sample) if pooled is None else projector(sample)[..., 1:, :]
    scale = output_std / tokens.std().item()
    if isinstance(projector, TransformerProjector):
        projector.learned_tokens.mul_(scale)
    for linear in _output_layers(projector):
        _scale(linear, scale)
    projector.train(was_training)


def _standardise(layer: nn.Linear, rows: torch.Tensor) -> None:
    """Makes a layer take off the mean of its inputs, float [..., width], and divide by their standard deviation."""
    rows = rows.flatten(0, -2)
    mean, std = rows.mean(0), rows.std(0, correction=0)
    std = torch.where(std > 1e-6, std, 1.0)  # a feature that is constant in the sample is centred, not blown up
    layer.weight.div_(std)
    layer.bias.sub_(layer.weight @ mean)


def _scale(layer: nn.Linear, scale: float) -> None:
    layer.weight.mul_(scale)
    layer.bias.mul_(scale)


def input_layer(projector: Any) -> nn.Linear:
    """Returns the layer that the features meet first."""
    return projector.linear if isinstance(projector, LinearProjector | TransformerProjector) else projector.linear_1


def input_rows(projector: nn.Module, image_features: torch.Tensor) -> torch.Tensor:
    """Returns features [..., N, D_vision] as the input layer gets them."""
    if not isinstance(projector, PixelShuffleProjector):
        return image_features
    return projector.arrange(image_features if projector.linear_pooled is None else image_features[..., 1:, :])


def linear_pooled(projector: nn.Module) -> nn.Linear | None:
    """Returns the layer of its own that a pooled vector in front of the patches has, if it has one."""
    return projector.linear_pooled if isinstance(projector, PixelShuffleProjector) else None


def _output_layers(projector: Any) -> list[nn.Linear]:
    """Returns the layers whose weights set the scale of the projected tokens."""
    if isinstance(projector, LinearProjector):
        return [projector.linear]
    if isinstance(projector, TransformerProjector):
        # Layers read the stream of tokens through a norm, so only what starts it and what is added to it counts.
        return [projector.linear, *(part for x in projector.layers for part in (x.attention.out, x.linear_2))]
    return [projector.linear_1 if projector.linear_2 is None else projector.linear_2]


def describe_projector(projector: Any, activation: str | None = None) -> str:
    """Returns in one line what a projector is made of.

    Args:
        projector: The projector.
        activation: The name of its activation, as the config has it.
    """
    if isinstance(projector, TransformerProjector):
        tokens, width = projector.learned_tokens.shape
        return f"{_chain(projector.linear)}, {tokens} learned tokens → {_count(projector.layers)} of {width}"
    if isinstance(projector, ResamplerProjector):
        tokens, width = projector.learned_tokens.shape
        return f"{tokens} learned queries, {_count(projector.layers)} of {width} → {_chain(projector.linear_2)}"
    if isinstance(projector, LinearProjector):
        return _chain(projector.linear)
    chain = _chain(projector.linear_1)
    if projector.linear_2 is not None:
        chain = _chain(projector.linear_1, activation, projector.linear_2)
    if isinstance(projector, PixelShuffleProjector):
        pooled = "" if projector.linear_pooled is None else f"{_chain(projector.linear_pooled)} in front, "
        return f"{pooled}pixel shuffle by {projector.factor} → {chain}"
    width = getattr(projector, "width", None)  # of the tokens that a prefix MLP makes
    return chain if width is None else f"{chain}, {projector.linear_2.out_features // width} tokens of {width}"


def _chain(*parts: nn.Linear | str | None) -> str:
    return " → ".join(
        f"Linear({part.in_features}, {part.out_features})" if isinstance(part, nn.Linear) else str(part).upper()
        for part in parts
    )


def _count(layers: nn.ModuleList) -> str:
    return f"{len(layers)} transformer layer{'s' if len(layers) > 1 else ''}"

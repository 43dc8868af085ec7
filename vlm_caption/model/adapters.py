"""LoRA adapters beside a tower's linear layers (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models").

They are peft's, put into the tower's own modules with `inject_adapter_in_model`.
"""

from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .blocks import find_blocks

_BASE = ".base_layer."  # where peft puts the weights that an adapter stands beside
_ADAPTER = ".lora_"
_NAME = "default"  # peft's name of the one adapter that a layer has


def is_adapter(key: str) -> bool:
    """Returns whether a weight of this name is an adapter's."""
    return _ADAPTER in key


def plain_name(key: str) -> str:
    """Returns a weight's name as it is without an adapter beside it."""
    return key.replace(_BASE, ".")


def has_adapter(tower: nn.Module) -> bool:
    """Returns whether a tower has adapters."""
    return any(is_adapter(key) for key, _ in tower.named_parameters())


def _linear_layers(tower: nn.Module) -> dict[str, nn.Module]:
    """Returns the linear layers in a tower's blocks, by name."""
    blocks, _ = find_blocks(tower)
    return {
        plain_name(f"{name}.").rstrip("."): module
        for name, module in tower.named_modules()
        if name.startswith(f"{blocks}.") and isinstance(module, nn.Linear | Conv1D) and not is_adapter(f".{name}")
    }


def adapter_targets(tower: nn.Module, targets: list[str] | None) -> list[str]:
    """Returns the last parts of the names of the linear layers that get an adapter; by default those of all blocks.

    Raises:
        ValueError: A target is not there; the message names those that are.
    """
    known = sorted({name.rpartition(".")[2] for name in _linear_layers(tower)})
    if not known:
        raise ValueError(f"The blocks of {type(tower).__name__} have no linear layers to put an adapter beside.")
    for target in targets or ():
        if target not in known:
            raise ValueError(
                f"targets: the blocks of {type(tower).__name__} have no linear layers {target!r}; they have "
                f"{', '.join(known)}."
            )
    return known if targets is None else sorted(targets)


def add_adapter(tower: nn.Module, adapter: dict[str, Any]) -> None:
    """Puts fresh adapters, in float32, beside a tower's linear layers. A fresh one changes no output.

    Args:
        tower: A tower without adapters.
        adapter: `rank`, `alpha`, `dropout` and `targets`, as a config holds them.

    Raises:
        ImportError: peft is not installed.
    """
    peft = import_peft()
    layers = {name: m for name, m in _linear_layers(tower).items() if name.rpartition(".")[2] in adapter["targets"]}
    # GPT-2's layers hold their weights the other way round; peft finds that out, and warns unless it was told.
    transposed = any(isinstance(layer, Conv1D) for layer in layers.values())
    peft.inject_adapter_in_model(
        peft.LoraConfig(
            r=adapter["rank"],
            lora_alpha=adapter["alpha"],
            lora_dropout=adapter["dropout"],
            target_modules=list(layers),
            fan_in_fan_out=transposed,
        ),
        tower,
    )
    for _, layer in adapted_layers(tower):
        for matrices in (layer.lora_A, layer.lora_B):
            matrices.float()  # peft gives them the tower's dtype
        layer.reset_lora_parameters(_NAME, True)


def import_peft() -> Any:
    """Returns the module `peft`.

    Raises:
        ImportError: It is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA adapters need peft: pip install peft.") from error
    return peft


def adapted_layers(tower: nn.Module) -> list[tuple[str, Any]]:
    """Returns the names of a tower's layers that have an adapter, and these layers as peft wraps them."""
    return [(name, module) for name, module in tower.named_modules() if hasattr(module, "lora_A")]


def set_scale(tower: nn.Module, adapter: dict[str, Any]) -> None:
    """Gives a tower's adapters another `alpha` and `dropout`; their weights stay."""
    for _, layer in adapted_layers(tower):
        layer.scaling[_NAME] = adapter["alpha"] / adapter["rank"]
        layer.lora_dropout[_NAME] = nn.Dropout(adapter["dropout"]) if adapter["dropout"] else nn.Identity()


@torch.no_grad()
def merged_weight(layer: Any) -> torch.Tensor:
    """Returns a layer's weight with its adapter added, in the weight's dtype; the sum is taken in float32.

    Raises:
        ValueError: The weight is quantised.
    """
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point():
        raise ValueError("Adapters cannot be merged into quantised weights: load the model unquantised.")
    return (weight.float() + layer.get_delta_weight(_NAME).float()).to(weight.dtype)

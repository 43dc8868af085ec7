"""What of a captioner is trained and what stays as it is: a policy for each module, by parameters' names.

    set_policies(model, {"vision": ModulePolicy("last_n", layers=2), "language": ModulePolicy("lora", rank=64)})

Three modules: `vision` (the vision tower), `language` (the language model) and `projector` (all that stands between
them, learned vectors included). The policies end up in the model's config, which says what a checkpoint is made of;
`freeze_towers` does what the config says. LoRA is peft's (Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language
Models"), put into a tower's own modules.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from .configuration_captioner import CaptionerConfig

MODULES = ("vision", "projector", "language")
TOWERS = {"vision": "vision_tower", "language": "language_model"}
PARTS = {"vision_tower": "vision", "language_model": "text"}  # how a config's fields about a tower begin

_BASE = ".base_layer."  # where peft puts the weights that an adapter stands beside
_ADAPTER = ".lora_"


@dataclass(frozen=True)
class ModulePolicy:
    """What of one module is trained.

    Attributes:
        train: nothing; an adapter beside its linear layers; its last `layers` blocks and the norm behind them; or all.
        layers: of `"last_n"`.
        rank, alpha, dropout: of `"lora"`; the adapter's output is scaled by alpha / rank. No alpha: twice the rank.
        targets: of `"lora"`: last parts of the names of linear layers in the tower's blocks, such as `q_proj`; None:
            all of them.
    """

    train: Literal["frozen", "lora", "last_n", "full"] = "frozen"
    layers: int | None = None
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: list[str] | None = None


def set_policies(model: Any, policies: dict[str, ModulePolicy]) -> None:
    """Freezes and trains the modules of a captioner as the policies say; those not named stay as they are.

    An adapter goes on being trained where rank and targets are the same, stays beside its frozen tower where the
    policy is `"frozen"`, and is merged into the weights where they are to be trained themselves or by another adapter.

    Args:
        model: a `CaptionerForConditionalGeneration` or `CaptionerModel`.
        policies: by module: `"vision"`, `"projector"`, `"language"`.

    Raises:
        ValueError: if a policy does not fit its module; the message names both.
        ImportError: for `"lora"`, where peft is not installed.
    """
    check_policies(model, policies)
    config: CaptionerConfig = model.config
    core = model.base_model
    for module, policy in policies.items():
        if module == "projector":
            config.freeze_projector = policy.train == "frozen"
            continue
        tower, part = getattr(core, TOWERS[module]), PARTS[TOWERS[module]]
        before, adapter = getattr(config, f"{part}_adapter"), None
        if policy.train == "lora":
            adapter = {
                "rank": policy.rank,
                "alpha": 2 * policy.rank if policy.alpha is None else policy.alpha,
                "dropout": policy.dropout,
                "targets": adapter_targets(tower, policy.targets),
            }
            if before is not None and policy.alpha is None and _same_shape(before, adapter):
                adapter["alpha"] = before["alpha"]  # it goes on as it is
        if before is not None and policy.train != "frozen" and not _same_shape(before, adapter):
            merge_adapter(core, TOWERS[module])
            before = None
        if adapter is not None:
            setattr(config, f"{part}_adapter", adapter)
            if before is not None:
                _set_scale(tower, adapter)
        setattr(config, f"freeze_{module}", policy.train == "frozen")
        setattr(config, f"{part}_layers", policy.layers if policy.train == "last_n" else None)
    model.freeze_towers()


def check_policies(model: Any, policies: dict[str, ModulePolicy]) -> None:
    """Sees that `set_policies` can be called so; nothing is changed.

    Raises:
        ValueError: if a policy does not fit its module; the message names both.
        ImportError: for `"lora"`, where peft is not installed.
    """
    for module, policy in policies.items():
        check_policy(module, policy)
        if module == "vision" and policy.train != "frozen" and model.base_model.vision_tower is None:
            raise ValueError(f"vision: there is no vision tower that could be trained ({policy.train!r}).")
        if policy.train not in ("last_n", "lora"):
            continue
        tower = getattr(model.base_model, TOWERS[module])
        try:
            if policy.layers is not None and policy.train == "last_n":
                last_blocks(tower, policy.layers)
            else:
                adapter_targets(tower, policy.targets)
                _import_peft()
        except ValueError as error:
            raise ValueError(f"{module}: {error}") from error


def check_policy(module: str, policy: ModulePolicy) -> None:
    """Sees that a policy makes sense for a module, whatever model that is part of.

    Raises:
        ValueError: if it does not; the message begins with the module.
    """
    if module == "projector" and policy.train not in ("frozen", "full"):
        raise ValueError(f"projector: {policy.train} is for towers; the projector is frozen or trained in full.")
    if policy.train == "last_n" and (policy.layers is None or policy.layers < 1):
        raise ValueError(f"{module}: last_n needs layers, how many of the last blocks are trained.")
    if policy.train == "lora" and policy.rank < 1:
        raise ValueError(f"{module}: the rank of an adapter must be at least 1, got {policy.rank}.")
    if policy.train == "lora" and not 0 <= policy.dropout < 1:
        raise ValueError(f"{module}: the dropout of an adapter must be at least 0 and below 1, got {policy.dropout}.")


def policies_of(config: CaptionerConfig) -> dict[str, ModulePolicy]:
    """What a config says of each module: the inverse of `set_policies`."""
    policies = {"projector": ModulePolicy("frozen" if config.freeze_projector else "full")}
    for module, tower in TOWERS.items():
        part = PARTS[tower]
        layers, adapter = getattr(config, f"{part}_layers"), getattr(config, f"{part}_adapter")
        if getattr(config, f"freeze_{module}"):
            policies[module] = ModulePolicy("frozen")
        elif layers is not None:
            policies[module] = ModulePolicy("last_n", layers=layers)
        elif adapter is not None:
            policies[module] = ModulePolicy("lora", **adapter)
        else:
            policies[module] = ModulePolicy("full")
    return {module: policies[module] for module in MODULES}


def freeze(core: Any) -> None:
    """Sets which parameters of a `CaptionerModel` get gradients, as its config says; adds adapters that it names."""
    config: CaptionerConfig = core.config
    policies = policies_of(config)
    for module, name in TOWERS.items():
        tower, policy, adapter = getattr(core, name), policies[module], getattr(config, f"{PARTS[name]}_adapter")
        if tower is None:
            continue
        if adapter is not None and not has_adapter(tower):
            add_adapter(tower, adapter)
        blocks = last_blocks(tower, policy.layers) if policy.layers is not None else ()
        chosen = {id(parameter) for block in blocks for parameter in block.parameters()}
        for key, parameter in tower.named_parameters():
            if policy.train == "lora":
                trained = is_adapter(key)
            elif policy.train == "last_n":
                trained = id(parameter) in chosen
            else:
                trained = policy.train == "full"
            parameter.requires_grad_(trained and parameter.is_floating_point())  # quantised ones are integers
    for key, parameter in core.named_parameters():
        if module_of(key) == "projector":
            parameter.requires_grad_(policies["projector"].train == "full")
    remember_trained(core)


def module_of(key: str) -> str:
    """The module that a parameter belongs to, by its name in the captioner."""
    part = key.removeprefix("core.").partition(".")[0]
    return next((module for module, tower in TOWERS.items() if tower == part), "projector")


def can_be_fetched(config: CaptionerConfig, tower: str) -> bool:
    """Whether a tower's weights, but for those trained here, are to be had again: its backbone has a fingerprint.

    One without is where a tower came from before it was trained as a whole.
    """
    return bool((getattr(config, f"{PARTS[tower]}_backbone") or {}).get("fingerprint"))


def remember_trained(core: Any) -> None:
    """Writes into the config which weights of towers get gradients now, for they no longer are their backbone's.

    A tower trained as a whole loses its backbone's fingerprint: it is not to be had again, and every checkpoint holds
    it from now on. Of a tower trained in part, the names are kept in `trained_weights`.
    """
    config: CaptionerConfig = core.config
    for tower, part in PARTS.items():
        if not can_be_fetched(config, tower):
            continue
        own = {
            plain_name(f"{tower}.{key}"): parameter.requires_grad
            for key, parameter in getattr(core, tower).named_parameters()
            if not is_adapter(key) and parameter.is_floating_point()
        }
        names = {name for name, trained in own.items() if trained}
        if names and len(names) == len(own):
            setattr(config, f"{part}_backbone", {**getattr(config, f"{part}_backbone"), "fingerprint": None})
            config.trained_weights = [name for name in config.trained_weights if not name.startswith(f"{tower}.")]
        elif names:
            config.trained_weights = sorted({*config.trained_weights, *names})


def holds_trained_weights(core: Any, tower: str) -> bool:
    """Whether weights of a tower's own, adapters aside, are trained now, or are known to have been trained before."""
    if getattr(core, tower) is None:
        return False
    backbone = getattr(core.config, f"{PARTS[tower]}_backbone")
    return (
        any(p.requires_grad and not is_adapter(key) for key, p in getattr(core, tower).named_parameters())
        or any(name.startswith(f"{tower}.") for name in core.config.trained_weights)
        or (backbone is not None and not backbone.get("fingerprint"))
    )


def set_train_mode(module: nn.Module, mode: bool) -> None:
    """Train mode for what is trained as a whole and for the dropout of trained adapters; eval mode for the rest."""
    parameters = list(module.parameters())
    if parameters and all(parameter.requires_grad for parameter in parameters):
        module.train(mode)
        return
    module.training = False
    for name, child in module.named_children():
        if name == "lora_dropout":
            child.train(mode and any(p.requires_grad for key, p in module.named_parameters() if "lora_" in key))
        else:
            set_train_mode(child, mode)


# A tower's blocks


def find_blocks(tower: nn.Module) -> tuple[str, list[nn.Module]]:
    """The name of a tower's list of blocks, and the blocks in order: its largest list of modules of one class.

    Raises:
        ValueError: if there is none.
    """
    lists = [
        (sum(parameter.numel() for parameter in module.parameters()), name, list(module.children()))
        for name, module in tower.named_modules()
        if isinstance(module, nn.ModuleList | nn.Sequential) and len({type(child) for child in module.children()}) == 1
    ]
    if not lists:
        raise ValueError(f"{type(tower).__name__} has no list of blocks: train it in 'full' or not at all.")
    _, name, blocks = max(lists, key=lambda found: found[0])  # the first of equals, hence the outermost
    return name, blocks


def last_blocks(tower: nn.Module, count: int) -> list[nn.Module]:
    """The last `count` blocks of a tower, and the norm behind them where there is one; not its head.

    Raises:
        ValueError: if it has fewer.
    """
    name, blocks = find_blocks(tower)
    if count > len(blocks):
        raise ValueError(f"layers: {type(tower).__name__} has {len(blocks)} blocks, and {count} are to be trained.")
    names = [key for key, _ in tower.named_modules()]
    # OPT's last norm is registered before its blocks.
    behind = [key for key in names[: names.index(name)] if "final" in key] + names[names.index(name) :]
    norms = [
        module
        for key in behind
        if "Norm" in type(module := tower.get_submodule(key)).__name__
        # Beside the list, or beside what holds it: not in the blocks, nor in a pooling head.
        and (not (parent := key.rpartition(".")[0]) or name.startswith(f"{parent}."))
    ]
    return [*blocks[-count:], *norms]


# Adapters


def is_adapter(key: str) -> bool:
    """Whether a weight of this name is an adapter's."""
    return _ADAPTER in key


def plain_name(key: str) -> str:
    """A weight's name as it is without an adapter beside it."""
    return key.replace(_BASE, ".")


def has_adapter(tower: nn.Module) -> bool:
    """Whether adapters are in a tower."""
    return any(is_adapter(key) for key, _ in tower.named_parameters())


def _linear_layers(tower: nn.Module) -> dict[str, nn.Module]:
    """The linear layers in a tower's blocks, by name."""
    blocks, _ = find_blocks(tower)
    return {
        plain_name(f"{name}.").rstrip("."): module
        for name, module in tower.named_modules()
        if name.startswith(f"{blocks}.") and isinstance(module, nn.Linear | Conv1D) and not is_adapter(f".{name}")
    }


def adapter_targets(tower: nn.Module, targets: list[str] | None) -> list[str]:
    """The last parts of the names of the linear layers that get an adapter; all of the tower's blocks by default.

    Raises:
        ValueError: if one is not there; the message names those that are.
    """
    known = sorted({name.rpartition(".")[2] for name in _linear_layers(tower)})
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
        tower: without adapters.
        adapter: `rank`, `alpha`, `dropout` and `targets`, as a config holds them.

    Raises:
        ImportError: where peft is not installed.
    """
    peft = _import_peft()
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
            for module in matrices.modules():
                module._is_hf_initialized = True  # transformers would draw both afresh
        layer.reset_lora_parameters("default", True)


def _import_peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ImportError("LoRA adapters need peft: pip install peft.") from error
    return peft


def adapted_layers(tower: nn.Module) -> list[tuple[str, Any]]:
    """The names of a tower's layers that have an adapter, and these layers as peft wraps them."""
    return [(name, module) for name, module in tower.named_modules() if hasattr(module, "lora_A")]


def _same_shape(one: dict[str, Any], other: dict[str, Any] | None) -> bool:
    return other is not None and (one["rank"], one["targets"]) == (other["rank"], other["targets"])


def _set_scale(tower: nn.Module, adapter: dict[str, Any]) -> None:
    for _, layer in adapted_layers(tower):
        layer.scaling["default"] = adapter["alpha"] / adapter["rank"]
        layer.lora_dropout["default"] = nn.Dropout(adapter["dropout"]) if adapter["dropout"] else nn.Identity()


@torch.no_grad()
def merged_weight(layer: Any) -> torch.Tensor:
    """A layer's weight with its adapter added, in the weight's dtype; the sum is taken in float32.

    Raises:
        ValueError: if the weight is quantised.
    """
    weight = layer.get_base_layer().weight
    if not weight.is_floating_point():
        raise ValueError("Adapters cannot be merged into quantised weights: load the model unquantised.")
    return (weight.float() + layer.get_delta_weight("default").float()).to(weight.dtype)


def merge_adapter(core: Any, tower: str) -> None:
    """Adds a tower's adapter to its weights and takes it out; the tower is frozen then, its weights trained here."""
    module = getattr(core, tower)
    names = []
    for name, layer in adapted_layers(module):
        base = layer.get_base_layer()
        base.weight.data = merged_weight(layer)
        parent, _, attribute = name.rpartition(".")
        setattr(module.get_submodule(parent), attribute, base)
        names.append(f"{tower}.{name}.weight")
    del module.peft_config
    setattr(core.config, f"{PARTS[tower]}_adapter", None)
    setattr(core.config, f"freeze_{module_of(tower)}", True)
    if can_be_fetched(core.config, tower):
        core.config.trained_weights = sorted({*core.config.trained_weights, *names})


def merged_state(core: Any, prefix: str = "") -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """What `merge_adapter` would make of a `CaptionerModel`, which stays as it is.

    Returns:
        its weights, under names that begin with `prefix`; and what its config would hold.
    """
    state = {key: tensor for key, tensor in core.state_dict().items() if not is_adapter(key)}
    fields: dict[str, Any] = {"trained_weights": set(core.config.trained_weights)}
    for tower, part in PARTS.items():
        if getattr(core.config, f"{part}_adapter") is None:
            continue
        fields |= {f"{part}_adapter": None, f"freeze_{module_of(tower)}": True}
        for name, layer in adapted_layers(getattr(core, tower)):
            state[f"{tower}.{name}.base_layer.weight"] = merged_weight(layer)
            if can_be_fetched(core.config, tower):
                fields["trained_weights"].add(f"{tower}.{name}.weight")
    fields["trained_weights"] = sorted(fields["trained_weights"])
    return {prefix + plain_name(key): tensor for key, tensor in state.items()}, fields


def describe_policy(policy: ModulePolicy) -> str:
    """A policy in a few words, for a log or a card."""
    if policy.train == "lora":
        return f"frozen beside a trained LoRA adapter of rank {policy.rank}"
    if policy.train == "last_n":
        return f"frozen but for its last {policy.layers} blocks"
    return {"frozen": "frozen", "full": "trained"}[policy.train]


__all__ = ["ModulePolicy", "set_policies"]

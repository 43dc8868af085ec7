"""Freezing and training the parts of a captioner: a policy for each module, by parameters' names.

    set_policies(model, {"vision": ModulePolicy("last_n", layers=2), "language": ModulePolicy("lora", rank=64)})

Three modules: `vision` (the vision tower), `language` (the language model) and `projector` (all that stands between
them, learned vectors included). The policies end up in the model's config, which says what a checkpoint is made of;
`freeze_towers` does what the config says.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from .adapters import (
    adapted_layers,
    adapter_targets,
    add_adapter,
    has_adapter,
    import_peft,
    is_adapter,
    merged_weight,
    plain_name,
    set_scale,
)
from .blocks import find_blocks, last_blocks
from .configuration_captioner import CaptionerConfig

MODULES = ("vision", "projector", "language")
TOWERS = {"vision": "vision_tower", "language": "language_model"}
PARTS = {"vision_tower": "vision", "language_model": "text"}  # how a config's fields about a tower begin


@dataclass(frozen=True)
class ModulePolicy:
    """What of one module is trained.

    Attributes:
        train: What is trained: nothing (`"frozen"`); an adapter beside the linear layers (`"lora"`); the last `layers`
            blocks and the norm behind them (`"last_n"`); or everything (`"full"`).
        layers: The number of blocks, for `"last_n"`.
        rank, alpha, dropout: The adapter's, for `"lora"`. Its output is scaled by alpha / rank; by default alpha is
            twice the rank.
        targets: The last parts of the names of linear layers in the tower's blocks, such as `q_proj`, for `"lora"`;
            by default all of them.
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
        model: A `CaptionerForConditionalGeneration` or `CaptionerModel`.
        policies: Policies by module: `"vision"`, `"projector"`, `"language"`.

    Raises:
        ValueError: A policy does not fit its module; the message names both.
        ImportError: A policy is `"lora"`, and peft is not installed.
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
                set_scale(tower, adapter)
        setattr(config, f"freeze_{module}", policy.train == "frozen")
        setattr(config, f"{part}_layers", policy.layers if policy.train == "last_n" else None)
    model.freeze_towers()


def check_policies(model: Any, policies: dict[str, ModulePolicy]) -> None:
    """Checks that `set_policies` can apply these policies; changes nothing.

    Raises:
        ValueError: A policy does not fit its module; the message names both.
        ImportError: A policy is `"lora"`, and peft is not installed.
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
                if module == "vision":
                    _check_reached(model.config, len(find_blocks(tower)[1]), policy.layers)
            else:
                adapter_targets(tower, policy.targets)
                import_peft()
        except ValueError as error:
            raise ValueError(f"{module}: {error}") from error


def _check_reached(config: CaptionerConfig, blocks: int, trained: int) -> None:
    """Checks that the features come out of one of a vision tower's last blocks, which are to be trained.

    Raises:
        ValueError: They all come out before.
    """
    layers = [layer % (blocks + 1) for layer in config.vision_feature_layers]
    if layers and max(layers) <= blocks - trained:
        raise ValueError(
            f"the features are those of vision_feature_layer={config.vision_feature_layer!r}, and the last {trained} "
            f"of {blocks} blocks do not change them: train more blocks, or name a later layer."
        )


def check_policy(module: str, policy: ModulePolicy) -> None:
    """Checks that a policy makes sense for a module of any model.

    Raises:
        ValueError: It does not; the message begins with the module.
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
    """Returns the policy of each module that a config describes: the inverse of `set_policies`."""
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
    """Sets which parameters of a `CaptionerModel` get gradients, as its config says; adds the adapters it names."""
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
    """Returns the module that a parameter belongs to, by its name in the captioner."""
    part = key.removeprefix("core.").partition(".")[0]
    return next((module for module, tower in TOWERS.items() if tower == part), "projector")


def can_be_fetched(config: CaptionerConfig, tower: str) -> bool:
    """Returns whether a tower's weights, except those trained here, can be fetched again from its backbone.

    A backbone without a fingerprint only tells where a tower came from before it was trained as a whole.
    """
    return bool((getattr(config, f"{PARTS[tower]}_backbone") or {}).get("fingerprint"))


def remember_trained(core: Any) -> None:
    """Records in the config which weights of towers get gradients now, since they are their backbone's no longer.

    A tower trained as a whole loses its backbone's fingerprint: it cannot be fetched again, and every checkpoint holds
    it from now on. For a tower trained in part, `trained_weights` names the weights.
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
    """Returns whether any weights of a tower itself, adapters aside, are trained now or were trained before."""
    if getattr(core, tower) is None:
        return False
    backbone = getattr(core.config, f"{PARTS[tower]}_backbone")
    return (
        any(p.requires_grad and not is_adapter(key) for key, p in getattr(core, tower).named_parameters())
        or any(name.startswith(f"{tower}.") for name in core.config.trained_weights)
        or (backbone is not None and not backbone.get("fingerprint"))
    )


def set_train_mode(module: nn.Module, mode: bool) -> None:
    """Puts what is trained as a whole and the dropout of trained adapters into train mode, the rest into eval mode."""
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


def _same_shape(one: dict[str, Any], other: dict[str, Any] | None) -> bool:
    return other is not None and (one["rank"], one["targets"]) == (other["rank"], other["targets"])


def merge_adapter(core: Any, tower: str) -> None:
    """Adds a tower's adapter to its weights and removes it; the tower is then frozen."""
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
    """Returns what `merge_adapter` would make of a `CaptionerModel`, and leaves the model as it is.

    Returns:
        The weights, under names that begin with `prefix`; and the fields of the config that would change.
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
    """Describes a policy in a few words, for a log or a card."""
    if policy.train == "lora":
        return f"frozen beside a trained LoRA adapter of rank {policy.rank}"
    if policy.train == "last_n":
        return f"frozen but for its last {policy.layers} blocks"
    return {"frozen": "frozen", "full": "trained"}[policy.train]

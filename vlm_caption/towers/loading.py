"""Loads the weights of pretrained towers under the names that they have in the composed model."""

import copy
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from ..core.console import quiet_transformers
from ..core.errors import BackboneError
from .checks import check_layers
from .configuration import CaptionerConfig
from .sources import fingerprint, resolve_backbone, weight_names


def load_towers(
    config: CaptionerConfig, check: bool = True, hub: dict[str, Any] | None = None
) -> dict[str, torch.Tensor]:
    """Loads the weights of the towers that `config` names a backbone for, under the composed model's names.

    Args:
        config: The composed model's config.
        check: Whether to compare each tower's fingerprint with the one in the config.
        hub: Options of the Hub; see `resolve_backbone`.

    Raises:
        BackboneError: A tower cannot be found or loaded, or is not the one that the config was written for.
    """
    weights = {}
    for part, backbone, tower_config in (
        ("vision_tower", config.vision_backbone, config.vision_config),
        ("language_model", config.text_backbone, config.text_config),
    ):
        if backbone is None or (config.external_towers and part not in config.external_towers):
            continue
        directory = resolve_backbone(backbone["name"], backbone.get("revision"), hub=hub)
        names = weight_names(directory)
        if names is not None:
            check_layers(config, part, len(names), directory)
        expected, found = backbone.get("fingerprint"), fingerprint(directory)
        if check and expected is not None and found != expected:
            raise BackboneError(
                f"The {part} {backbone['name']} has other weights than the projector was trained with "
                f"({found[:19]}… instead of {expected[:19]}…): name the right one, or pass "
                "allow_different_backbone=True to go on with it."
            )
        backbone["fingerprint"] = found  # if another tower was allowed, later checkpoints name that one
        # Chosen layers give the pooled vector themselves.
        pooled_feature = "cls" if config.vision_feature_layers else config.pooled_feature
        tower = _load_tower(part, directory, tower_config, pooled_feature)
        weights |= {f"core.{part}.{name}": tensor for name, tensor in tower.items()}
    return weights


def _load_tower(
    part: str, directory: Path, tower_config: PreTrainedConfig, pooled_feature: str
) -> dict[str, torch.Tensor]:
    from transformers import AutoModel, AutoModelForCausalLM, CLIPVisionModelWithProjection

    auto_class: Any
    if part == "language_model":
        auto_class = AutoModelForCausalLM
    else:
        auto_class = CLIPVisionModelWithProjection if pooled_feature == "image_embeds" else AutoModel
    with quiet_transformers():
        # By transformers, which knows the older names of each family's weights.
        loaded: Any = auto_class.from_pretrained(
            directory,
            config=copy.deepcopy(tower_config),
            dtype="auto",
            output_loading_info=True,
            trust_remote_code=False,
        )
    tower, report = loaded
    # A classification checkpoint has no pooler, which matters only if the pooler's output is used.
    missing = {name for name in report["missing_keys"] if pooled_feature == "pooler_output" or "pooler" not in name}
    if missing:
        raise BackboneError(
            f"{directory} lacks {len(missing)} weights of the {part} ({', '.join(sorted(missing)[:3])}, …): name a "
            "checkpoint of the whole tower, or choose another pooled_feature."
        )
    state = tower.state_dict()
    for name in report["missing_keys"]:
        state[name].zero_()  # random values would give the tower another fingerprint each time
    return state

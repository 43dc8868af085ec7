"""What a captioner's checkpoint holds, and how a bridge and its towers become one model.

A *bridge* holds the weights that were trained, and names its two towers. A *full* checkpoint holds all weights, with
adapters merged, and the code of the forward pass. Both are written by transformers' `save_pretrained` and read by its
`from_pretrained`. For a bridge, the state dict is completed with the weights of the towers.
"""

import contextlib
import copy
import shutil
from collections.abc import Callable, Collection, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch

from ..core.errors import CheckpointError
from ..core.untrusted import load_json
from ..model import modeling_captioner
from ..model.adapters import is_adapter, plain_name
from ..model.freezing import PARTS, can_be_fetched, merged_state
from .checks import AUTO_MAP, check_shapes, check_weights
from .configuration import CaptionerConfig
from .loading import load_towers

HUB_OPTIONS = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")

# The code that is copied into full checkpoints. It is for inference alone.
CODE_FILES = (
    "configuration_captioner.py",
    "layer_prefix.py",
    "modeling_captioner.py",
    "processing_captioner.py",
    "projectors.py",
)

_VISION_PATTERN = r"(?:core\.)?vision_tower"


# Saving


def external_towers(config: CaptionerConfig) -> list[str]:
    """Returns the towers whose untrained weights a bridge leaves out, because they can be fetched."""
    return [tower for tower in PARTS if can_be_fetched(config, tower)]


def names_left_out(model: Any, towers: list[str]) -> set[str]:
    """Returns the names of the weights of these towers that are neither adapters nor trained."""
    core = model.base_model
    prefix = "" if core is model else f"{model.base_model_prefix}."
    trained = set(model.config.trained_weights)
    left_out = set()
    for tower in towers:
        state = getattr(core, tower).state_dict(keep_vars=True)
        # By identity, because a tied weight has two names.
        carried = {
            id(tensor) for key, tensor in state.items() if is_adapter(key) or plain_name(f"{tower}.{key}") in trained
        }
        left_out |= {f"{prefix}{tower}.{key}" for key, tensor in state.items() if id(tensor) not in carried}
    return left_out


@contextlib.contextmanager
def saved_config(model: Any, full: bool) -> Generator[dict[str, Any]]:
    """Gives the model's config the fields of a checkpoint inside a `with` block.

    Args:
        model: The captioner to save.
        full: Whether a full checkpoint is saved.

    Yields:
        Arguments for `PreTrainedModel.save_pretrained`.
    """
    config, options = model.config, {}
    changes: dict[str, Any] = {}
    adapted = config.vision_adapter is not None or config.text_adapter is not None
    fields = vars(config)
    fields.pop("auto_map", None)
    if full:
        config.auto_map = dict(AUTO_MAP)
    if full and adapted:
        core = model.base_model
        options["state_dict"], changes = merged_state(core, "" if core is model else f"{model.base_model_prefix}.")
    elif adapted:
        # By default transformers writes older names, and cannot read those of adapters.
        options["save_original_format"] = False
    before = {name: getattr(config, name) for name in changes}
    if not full and "language_model" in config.external_towers and "quantization_config" in fields:
        # The tower is fetched unquantised, and whoever loads the bridge decides about quantisation.
        before["quantization_config"] = fields.pop("quantization_config")
    fields.update(changes)
    try:
        yield options
    finally:
        fields.update(before)


def copy_code(directory: Path) -> None:
    """Writes the code of the forward pass into a full checkpoint's folder."""
    directory.mkdir(parents=True, exist_ok=True)
    for name in CODE_FILES:
        shutil.copyfile(Path(modeling_captioner.__file__).with_name(name), directory / name)


# Loading


@dataclass
class _Bridge:
    """A bridge's parts, completed with its towers.

    Attributes:
        config: The config of a complete model without adapters.
        weights: All weights of that model.
        adapters: The adapters' weights.
        adapter_fields: The fields of the checkpoint's config that describe adapters.
    """

    config: CaptionerConfig
    weights: dict[str, torch.Tensor]
    adapters: dict[str, torch.Tensor]
    adapter_fields: dict[str, Any]


def load_bridge(
    load: Callable[..., Any],
    name_or_path: Any,
    config: CaptionerConfig,
    backbones: dict[str, str | None],
    check: bool,
    hub: dict[str, Any],
) -> Any:
    """Loads a checkpoint that leaves towers out, or has adapters.

    Args:
        load: A function that makes a model from `config` and `state_dict`.
        name_or_path: The checkpoint's folder or Hub id.
        config: The checkpoint's config, which is not changed.
        backbones: The sources of towers that replace the backbones that the checkpoint names, by tower.
        check: Whether the towers' weights must be those that the bridge was trained with.
        hub: Options of the Hub.

    Returns:
        What `load` returns: the model, or the model and a report.

    Raises:
        BackboneError: A tower cannot be found or loaded, or, with `check`, its weights differ.
        ValueError: Weights are missing, or do not belong to the towers.
    """
    bridge = _read_bridge(name_or_path, config, backbones, check, hub)
    loaded = load(config=bridge.config, state_dict=bridge.weights)
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    # Adapters are added once the towers have their dtype, device and quantisation.
    _add_adapters(model, bridge, name_or_path)
    model.name_or_path = model.config.name_or_path = str(name_or_path)
    if model.can_generate():
        with contextlib.suppress(OSError):  # a bridge written by hand may lack one
            model.generation_config = type(model.generation_config).from_pretrained(name_or_path, **hub)
    return loaded


def _read_bridge(
    name_or_path: Any, config: CaptionerConfig, backbones: dict[str, str | None], check: bool, hub: dict[str, Any]
) -> _Bridge:
    config = copy.deepcopy(config)
    if "language_model" in config.external_towers:
        vars(config).pop("quantization_config", None)  # of the model that an earlier version saved the bridge from
    for tower, name in backbones.items():
        if name is not None:
            field = f"{PARTS[tower]}_backbone"
            setattr(config, field, {**(getattr(config, field) or {}), "name": name, "revision": None})
    weights, adapters = _gather_weights(name_or_path, config, check, hub)
    config.external_towers = []
    fields = {}
    for adapter, frozen in (("vision_adapter", "freeze_vision"), ("text_adapter", "freeze_language")):
        if getattr(config, adapter) is not None:
            fields |= {name: getattr(config, name) for name in (adapter, frozen)}
            setattr(config, adapter, None)
            setattr(config, frozen, True)
    check_shapes(config, {name: tensor.shape for name, tensor in weights.items()}, name_or_path)
    return _Bridge(config, weights, adapters, fields)


def _gather_weights(
    name_or_path: Any, config: CaptionerConfig, check: bool, hub: dict[str, Any]
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Returns the weights of a checkpoint and of the towers that it leaves out, and those of its adapters.

    Raises:
        BackboneError: A tower cannot be found or loaded, or, with `check`, its weights differ.
        ValueError: The checkpoint lacks trained weights of a tower, or holds some that the tower does not have.
    """
    own, adapters = _split_adapters(read_safetensors(name_or_path, **hub))
    check_weights(config, {name: tensor.shape for name, tensor in own.items()}, name_or_path, config.external_towers)
    towers = tuple(f"core.{tower}." for tower in config.external_towers)
    absent = [
        name for name in config.trained_weights if f"core.{name}".startswith(towers) and f"core.{name}" not in own
    ]
    if absent:
        raise ValueError(
            f"{name_or_path} lacks {len(absent)} weights of towers that were trained ({', '.join(absent[:3])}, …): "
            "load it with the config.json that was saved with it."
        )
    weights = {}
    if config.external_towers:
        of_towers = {name: value for name, value in hub.items() if name not in ("revision", "subfolder")}
        weights = load_towers(config, check=check, hub=of_towers)  # each tower has a revision of its own
        unknown = [name for name in own if name.startswith(towers) and name not in weights]
        if unknown:
            raise ValueError(
                f"{name_or_path} holds weights that its towers have not ({unknown[0]}): load it with the version of "
                "transformers that it was saved with, which config.json names."
            )
    # A trained weight replaces the backbone's, under every name of a tied weight.
    replaced = {weights[name].data_ptr() for name in own if name in weights}
    weights = {name: tensor for name, tensor in weights.items() if tensor.data_ptr() not in replaced} | own
    return weights, adapters


def _add_adapters(model: Any, bridge: _Bridge, name_or_path: Any) -> None:
    """Adds a bridge's adapters with their weights to the model that was made of its other parts.

    Raises:
        ValueError: The weights do not belong to the adapters that the config names.
    """
    for name, value in bridge.adapter_fields.items():
        setattr(model.config, name, value)
    model.freeze_towers()
    core = model.base_model
    expected = {f"core.{key}" for key in core.state_dict() if is_adapter(key)}
    if expected != bridge.adapters.keys():
        raise ValueError(
            f"{name_or_path} holds other weights of adapters than its config names "
            f"({', '.join(sorted(expected ^ bridge.adapters.keys())[:3])}, …): load it with the config.json that was "
            "saved with it."
        )
    core.load_state_dict({key.removeprefix("core."): w for key, w in bridge.adapters.items()}, strict=False)


def _split_adapters(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Splits a checkpoint's weights into those of the model, named as without adapters, and those of adapters.

    All names begin with `core.` afterwards, as in a checkpoint of the model with its head.
    """
    weights = {name if name.startswith("core.") else f"core.{name}": tensor for name, tensor in weights.items()}
    own = {plain_name(name): tensor for name, tensor in weights.items() if not is_adapter(name)}
    return own, {name: tensor for name, tensor in weights.items() if is_adapter(name)}


def check_complete(name_or_path: Any, config: CaptionerConfig, hub: dict[str, Any]) -> None:
    """Checks that the weights of a full checkpoint fit its config. Only the headers of their files are read.

    Args:
        name_or_path: The checkpoint's folder or Hub id.
        config: The checkpoint's config.
        hub: Options of the Hub.

    Raises:
        OSError: There is no file of weights.
        CheckpointError: They do not fit.
    """
    from safetensors import safe_open

    shapes: dict[str, list[int]] = {}
    for path in find_weights(name_or_path, **hub):
        with safe_open(path, framework="pt") as file:
            shapes |= {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118
    shapes = {name if name.startswith("core.") else f"core.{name}": shape for name, shape in shapes.items()}
    check_weights(config, shapes, name_or_path)
    if getattr(config, "quantization_config", None) is None:  # quantised weights have other shapes
        check_shapes(config, shapes, name_or_path)


def refuse_gaps(name_or_path: Any, missing: Collection[str]) -> None:
    """Raises an error if weights are missing.

    Raises:
        ValueError: Some are.
    """
    if missing:
        raise ValueError(
            f"{name_or_path or 'The state dict'} lacks {len(missing)} weights of the captioner "
            f"({', '.join(sorted(missing)[:3])}, …): load it with the config.json that was saved with it."
        )


def prepare_quantization(model_class: type, options: dict[str, Any]) -> dict[str, Any]:
    """Restricts a quantisation to the language model, unless the quantisation names modules to skip.

    Args:
        model_class: The captioner's class.
        options: Arguments of `from_pretrained`, including `config`.

    Returns:
        The arguments, with a changed copy of the quantisation.
    """
    quantization: Any = copy.deepcopy(options.get("quantization_config"))
    if isinstance(quantization, dict):  # it may lack the field that its kind has
        fields = quantization
        by_bitsandbytes = not fields.keys().isdisjoint({"load_in_8bit", "load_in_4bit"})
        fields.setdefault("llm_int8_skip_modules" if by_bitsandbytes else "modules_to_not_convert", None)
    else:
        fields = {} if quantization is None else vars(quantization)
    for field in ("modules_to_not_convert", "llm_int8_skip_modules"):
        if fields.get(field, "") is None:
            from transformers.quantizers.base import get_keys_to_not_convert

            with torch.device("meta"):
                heads = get_keys_to_not_convert(model_class(options["config"]))  # those skipped when nothing is said
            fields[field] = [*heads, _VISION_PATTERN, modeling_captioner.PROJECTOR_PATTERN]
    return options if quantization is None else options | {"quantization_config": quantization}


def read_safetensors(name_or_path: Any, **hub: Any) -> dict[str, torch.Tensor]:
    """Reads all tensors of a checkpoint's safetensors file or shards.

    Args:
        name_or_path: The checkpoint's folder or Hub id.
        **hub: Options of the Hub.

    Raises:
        OSError: There is no such file.
    """
    from safetensors.torch import load_file

    tensors: dict[str, torch.Tensor] = {}
    for path in find_weights(name_or_path, **hub):
        tensors |= load_file(path)
    return tensors


def find_weights(name_or_path: Any, **hub: Any) -> list[Path]:
    """Returns the paths of a checkpoint's safetensors file or shards.

    Args:
        name_or_path: The checkpoint's folder or Hub id.
        **hub: Options of the Hub.

    Raises:
        OSError: There is no such file.
        CheckpointError: The index of the shards is damaged.
    """
    from transformers.utils import cached_file

    with contextlib.suppress(OSError):
        return [Path(cast(str, cached_file(name_or_path, "model.safetensors", **hub)))]
    index = cast(str, cached_file(name_or_path, "model.safetensors.index.json", **hub))
    try:
        shards = sorted(set(load_json(Path(index).read_bytes(), "the file", ValueError)["weight_map"].values()))
        if any(Path(shard).name != shard for shard in shards):
            raise ValueError("a shard lies outside the folder")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{index} is damaged ({error}): fetch it again.") from error
    return [Path(cast(str, cached_file(name_or_path, shard, **hub))) for shard in shards]

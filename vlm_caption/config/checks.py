"""Checks names and values of settings. Every error is one sentence that names the setting."""

import contextlib
import difflib
import math
import re
import types
import typing
from collections.abc import Iterable
from typing import Any, Literal

from ..core.errors import ConfigError
from .sections import DataSection, GenerationSection, ModelSection, ModuleSettings, ReinforceSettings, TrainingSection

SECTIONS: dict[str, type] = {
    "model": ModelSection,
    "data": DataSection,
    "training": TrainingSection,
    "generation": GenerationSection,
}

_POSITIVE = {
    "data.max_caption_tokens",
    "data.max_pixels",
    "data.max_bytes",
    "training.batch_size",
    "training.accumulation",
    "training.epochs",
    "training.eval_steps",
    "training.eval_images",
    "training.save_steps",
    "training.logging_steps",
    "training.output_scale",
    "generation.max_new_tokens",
    "generation.num_beams",
    "generation.consensus",
    "generation.repetition_penalty",
}
_NOT_NEGATIVE = {
    "training.learning_rate",
    "training.warmup_steps",
    "training.weight_decay",
    "training.max_grad_norm",
    "training.seed",
    "training.patience",
    "training.eval_captions",
    "training.samples",
    "generation.no_repeat_ngram_size",
}
_CORPORA = {"data.path", "data.replay"}
_SHARES = {"data.dev_share", "data.max_bad_share", "data.replay_share", "training.ema_decay"}

# The policy that a setting of a module belongs to.
_POLICY_OF = {"layers": "last_n", "rank": "lora", "alpha": "lora", "dropout": "lora", "targets": "lora"}

# Settings of the whole run, which a stage cannot change.
_SAME_IN_ALL_STAGES = (
    "output_dir",
    "output_scale",
    "precision",
    "eval_images",
    "samples",
    "report_to",
    "seed",
    "resume",
)


def field_types() -> dict[str, Any]:
    """Returns the type of every setting by its full name, `section.field`."""
    return {
        f"{section}.{name}": hint
        for section, section_class in SECTIONS.items()
        for name, hint in typing.get_type_hints(section_class).items()
    }


def check_name(name: str, known: Iterable[str], complaint: str) -> None:
    """Checks that a name is known.

    Args:
        name: The name.
        known: All known names.
        complaint: The start of the error message.

    Raises:
        ConfigError: The name is unknown. The message suggests the most similar known name.
    """
    known = list(known)
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(f"{complaint} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))


def check_value(name: str, value: Any) -> Any:
    """Returns a value converted to the type of its setting.

    Args:
        name: The full name of the setting.
        value: The value, as YAML gives it.

    Raises:
        ConfigError: The value has the wrong type, or is out of range.
    """
    value = _convert(name, value, field_types()[name])
    if name.startswith("training.train_") and isinstance(value, dict):
        return _check_module(name, value)
    if name == "training.reinforce" and value:
        return _check_reinforce(name, value)
    if name == "data.prompt" and value:
        _check_prompt(name, value)
    if name in _CORPORA and isinstance(value, list):
        return _check_corpora(name, value)
    if name == "data.weights" and value is not None:
        return _check_weights(name, value)
    if value is None:
        return None
    if name in _POSITIVE and value <= 0:
        raise ConfigError(f"{name} must be above 0, and {value} is not.")
    if name in _NOT_NEGATIVE and value < 0:
        raise ConfigError(f"{name} must be at least 0, and {value} is not.")
    if name in _SHARES:
        _check_share(name, value)
    return value


def check_stages(stages: Any, overrides: Iterable[str]) -> list[dict[str, Any]]:
    """Returns the stages of a config file with converted values.

    Args:
        stages: The stages, as YAML gives them.
        overrides: The full names of settings from the command line. These take precedence over the stages, so they are
            left out of the result.

    Raises:
        ConfigError: A stage has no valid name, or one of its settings is unknown or wrong.
    """
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError("stages must be a list of mappings, each a name and settings of the training.")
    checked: list[dict[str, Any]] = []
    for number, stage in enumerate(stages, 1):
        where = f"stages[{number}]"
        title = _check_stage_names(stage, where)
        if title in (before["name"] for before in checked):
            raise ConfigError(f"{where}: another stage is called {title!r} too.")
        settings = {
            name: check_value(f"training.{name}", value)
            for name, value in stage.items()
            if name != "name" and f"training.{name}" not in overrides
        }
        checked.append({"name": title} | settings)
    return checked


def type_name(hint: Any) -> str:
    """Returns how a type is written in messages and in `--help`, such as "int|null" or "all|sample|first"."""
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    kinds = members(hint)
    if len(kinds) > 1:
        return "|".join(map(type_name, kinds))
    return "null" if hint is types.NoneType else hint.__name__


def members(hint: Any) -> tuple:
    """Returns the members of a union, or the type itself if it is not a union."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _convert(name: str, value: Any, hint: Any) -> Any:
    """Accepts an int for a float, and a number in a string such as "1e-3", which YAML takes for text."""
    for kind in members(hint):
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return value
        elif kind is float and not isinstance(value, bool):
            with contextlib.suppress(TypeError, ValueError):
                if math.isfinite(number := float(value)):
                    return number
        elif kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    raise ConfigError(f"{name} must be {type_name(hint)}, and {value!r} is not.")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise ConfigError(f"{name} must be at least 0 and below 1, and {value} is not.")


def _check_corpora(name: str, paths: list) -> list[str]:
    """Returns the paths of a list of corpora."""
    if not paths:
        raise ConfigError(f"{name} is an empty list: name at least one corpus.")
    checked = [_convert(f"{name}[{number}]", path, str) for number, path in enumerate(paths)]
    for number, path in enumerate(checked):
        if not path:
            raise ConfigError(f"{name}[{number}] is empty: name a folder, a file or a Hub dataset.")
        if path in checked[:number]:
            raise ConfigError(f"{name} names {path} twice: name it once; data.weights says how often it is seen.")
    return checked


def _check_weights(name: str, weights: list) -> list[float]:
    checked = [_convert(f"{name}[{number}]", weight, float) for number, weight in enumerate(weights)]
    for weight in checked:
        if weight <= 0:
            raise ConfigError(f"{name} must be numbers above 0, and {weight:g} is not: leave that corpus out instead.")
    return checked


def _check_prompt(name: str, value: str) -> None:
    from ..towers.processor import check_prompt

    try:
        check_prompt(value)
    except ValueError as error:
        raise ConfigError(f"{name} {value!r}: {error}") from error


def _check_module(name: str, value: dict) -> dict[str, Any]:
    checked = _convert_fields(name, value, ModuleSettings)
    if "policy" not in checked:
        if name != "training.train_projector":
            policies = type_name(typing.get_type_hints(ModuleSettings)["policy"])
            raise ConfigError(f"{name}: say its policy too, which is {policies}.")
        checked["policy"] = "full"
    for key, policy in _POLICY_OF.items():
        if key in checked and checked["policy"] != policy:
            raise ConfigError(f"{name}: {key} is for the policy {policy}, and this is {checked['policy']}.")
    _check_least(name, checked, {"layers": 1, "rank": 1, "learning_rate": 0, "weight_decay": 0})
    _check_above_0(name, checked, "alpha")
    _check_share(f"{name}.dropout", checked.get("dropout", 0))
    return checked


def _check_reinforce(name: str, value: dict) -> dict[str, Any]:
    checked = _convert_fields(name, value, ReinforceSettings)
    least = {"num_generations": 2, "max_completion_length": 1, "num_iterations": 1, "bleu": 0, "beta": 0}
    _check_least(name, checked, least)
    _check_above_0(name, checked, "temperature")
    if checked.get("temperature", 1) != 1 and not checked.get("do_sample", True):
        raise ConfigError(f"{name}.temperature is for samples: leave it out, or do_sample: false.")
    if checked.get("epsilon") is not None and not 0 < checked["epsilon"] < 1:
        raise ConfigError(f"{name}.epsilon must be above 0 and below 1, and {checked['epsilon']} is not.")
    return checked


def _convert_fields(name: str, value: dict, section: type) -> dict[str, Any]:
    """Returns the fields of a setting that is a mapping, converted to the types that a section has for them."""
    hints = typing.get_type_hints(section)
    for key in value:
        check_name(str(key), hints, f"{name}: there is no setting")
    return {key: _convert(f"{name}.{key}", given, hints[key]) for key, given in value.items()}


def _check_least(name: str, values: dict[str, Any], least: dict[str, int]) -> None:
    for key, bound in least.items():
        if values.get(key) is not None and values[key] < bound:
            raise ConfigError(f"{name}.{key} must be at least {bound}, and {values[key]} is not.")


def _check_above_0(name: str, values: dict[str, Any], key: str) -> None:
    if values.get(key) is not None and values[key] <= 0:
        raise ConfigError(f"{name}.{key} must be above 0, and {values[key]} is not.")


def _check_stage_names(stage: dict, where: str) -> str:
    """Checks the names of a stage's settings and returns the stage's own name."""
    known = ["name", *(name for name in typing.get_type_hints(TrainingSection) if name not in _SAME_IN_ALL_STAGES)]
    for name in stage:
        if name in _SAME_IN_ALL_STAGES:
            raise ConfigError(f"{where}: {name} is the same in all stages: set it in training.")
        check_name(str(name), known, f"{where}: there is no setting")
    title = stage.get("name")
    if not isinstance(title, str) or not re.fullmatch(r"\w[\w-]*", title):
        raise ConfigError(f"{where}: a stage needs a name of letters, digits, _ and -, and {title!r} is not one.")
    return title

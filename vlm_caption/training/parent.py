"""Starts a run from a checkpoint: its settings, its model, and what is recorded about it."""

import dataclasses
import logging
import re
from pathlib import Path
from typing import Any

import torch

from ..captioning.captioner import Captioner
from ..captioning.checkpoints import find_checkpoint
from ..config.run_config import RunConfig
from ..config.sections import ModelSection
from ..core.console import first_line_of
from ..core.errors import CheckpointError, ConfigError
from ..core.hub_ids import is_hub_id
from ..data.vectors import Vectors
from ..hub.facts import read_facts
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.checks import check_checkpoint, load_config
from ..towers.composition import NO_TOWER, add_layer_prefix
from ..towers.configuration import CaptionerConfig
from ..towers.fingerprints import weights_fingerprint
from ..towers.processor import CaptionerProcessor

logger = logging.getLogger(__name__)

# Settings of a new model that say nothing about a finished one.
_OF_NEW_MODELS = ("tokenizer", "query_text")

# A setting that a finished model can get, if it has none.
_ADDED = "layer_prefix_rank"


def adopt_parent(config: RunConfig) -> RunConfig:
    """Returns the config of a run with the settings of the checkpoint that it starts from, if it starts from one.

    The settings in `model` become those of the checkpoint, except that a layer prefix can be added. The prompt becomes
    the checkpoint's unless the config gives one.

    Raises:
        ConfigError: The config gives a setting in `model` that the checkpoint does not have, or the output folder is
            the checkpoint's.
        CheckpointError: There is no such checkpoint, or it is damaged.
    """
    parent = config.model.init_from
    if parent is None:
        return config
    folder = find_checkpoint(parent)
    run = folder.resolve()
    while re.match(r"(checkpoint|stage)-", run.name) and run != Path(config.training.output_dir).resolve():
        run = run.parent
    if run == Path(config.training.output_dir).resolve():
        raise ConfigError(
            f"model.init_from {parent} is in training.output_dir {config.training.output_dir}: choose another "
            "training.output_dir, since a run never overwrites the checkpoint that it starts from."
        )
    check_checkpoint(folder)
    own = _model_settings(load_config(folder))
    if own[_ADDED] is None:
        own[_ADDED] = config.model.layer_prefix_rank
    _check_given(config, own)
    try:
        processor = CaptionerProcessor.from_pretrained(folder)
    except Exception as error:  # files of unknown origin, read by several libraries
        raise CheckpointError(
            f"The processor of model.init_from {parent} cannot be loaded: {first_line_of(error)}"
        ) from error
    model = ModelSection(init_from=parent, **own)
    data = dataclasses.replace(config.data)
    if not _is_given(config, "data", "prompt"):
        data.prompt = processor.prompt
    if not _is_given(config, "data", "chat"):
        data.chat = processor.chat
    return dataclasses.replace(config, model=model, data=data)


def _model_settings(config: CaptionerConfig) -> dict[str, Any]:
    """Returns a checkpoint's settings, as `ModelSection` names them. Random towers are named by their family."""
    names = {field.name for field in dataclasses.fields(ModelSection)}
    settings = {name: getattr(config, name) for name in names if hasattr(config, name)}
    for module, part in (("vision", "vision"), ("language", "text")):
        tower, backbone = getattr(config, f"{part}_config"), getattr(config, f"{part}_backbone")
        if tower is None or (module == "vision" and config.feature_size is not None):
            settings[module] = NO_TOWER
        elif backbone is None:
            settings[module] = {"model_type": tower.model_type}
        else:
            settings |= {module: backbone["name"], f"{module}_revision": backbone.get("revision")}
    return settings


def _check_given(config: RunConfig, own: dict[str, Any]) -> None:
    """Checks that a config asks for no other model than the checkpoint's.

    Raises:
        ConfigError: It does.
    """
    for field in dataclasses.fields(ModelSection):
        name, given = field.name, getattr(config.model, field.name)
        if name == "init_from" or name in _OF_NEW_MODELS or given is None or not _is_given(config, "model", name):
            continue
        there = own.get(name)
        if isinstance(given, dict) and isinstance(there, dict):
            given, there = given.get("model_type"), there["model_type"]
        if given != there:
            raise ConfigError(
                f"model.{name} is {given!r}, and the checkpoint {config.model.init_from} has {there!r}, which cannot "
                f"be changed: leave out model.{name}, or leave out model.init_from to train a new model."
            )


def _is_given(config: RunConfig, section: str, name: str) -> bool:
    settings = getattr(config, section)
    return f"{section}.{name}" in config.given or getattr(settings, name) != getattr(type(settings)(), name)


def load_parent(
    config: RunConfig, vectors: Vectors | None = None
) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    """Loads the checkpoint that a run starts from, in float32, on the CPU.

    Args:
        config: The run's config.
        vectors: The vectors that are captioned instead of images.

    Raises:
        CheckpointError: The checkpoint is damaged.
        BackboneError: One of its towers cannot be loaded, or is not the one that it was trained with.
        ConfigError: It takes other vectors.
    """
    parent = str(config.model.init_from)
    captioner = Captioner.from_pretrained(parent, device="cpu", dtype=torch.float32)
    own = captioner.model.config
    if vectors is not None and vectors.shape[1:] != (own.feature_tokens, own.feature_size):
        raise ConfigError(
            f"data.features has vectors of shape {tuple(vectors.shape[1:])}, and the checkpoint {parent} takes "
            f"{(own.feature_tokens, own.feature_size)}: give vectors of the same encoder."
        )
    logger.info("Starting from %s", parent)
    return captioner.model, captioner.processor


def extend_parent(config: RunConfig, model: CaptionerForConditionalGeneration) -> None:
    """Adds the layer prefix that a config asks for to a model of a checkpoint without one.

    Raises:
        ConfigError: The language model cannot have one.
    """
    rank = config.model.layer_prefix_rank
    if rank is None or model.config.layer_prefix_rank is not None:
        return
    try:
        add_layer_prefix(model, rank)
    except ValueError as error:
        raise ConfigError(f"model.{error}") from error
    logger.info("Added a layer prefix of rank %d", rank)


def describe_parent(config: RunConfig, model: CaptionerForConditionalGeneration) -> dict[str, Any] | None:
    """Returns what a run records about its parent: the name, the weights and the data; None without one.

    Args:
        config: The run's config.
        model: The model, as it was loaded from the checkpoint to start from.
    """
    parent = config.model.init_from
    if parent is None:
        return None
    folder = find_checkpoint(parent)
    known: dict[str, Any] = {
        # The path of a local folder means nothing elsewhere.
        "name": parent if is_hub_id(parent) and not Path(parent).is_dir() else folder.resolve().name,
        "weights": weights_fingerprint(model),
    }
    try:
        facts = read_facts(folder)
    except ValueError as error:
        logger.warning("%s It is not known what the checkpoint was trained on.", error)
        return known
    if facts.get("weights") == known["weights"]:
        training = facts.get("training", {})
        known |= {name: training[name] for name in ("data", "parent") if name in training}
    return known

"""Taking a run up again: what its folder must be like, and what of its config may have changed."""

import dataclasses
import logging
import os
import shutil
from pathlib import Path

import yaml

from .checkpoints import (
    count_processes,
    find_checkpoints,
    remove_checkpoint,
    remove_leftovers,
    writing_to,
)
from .files import write_text
from .run_config import ConfigError, RunConfig, field_types
from .stages import STAGE_PATTERN, holds_progress

logger = logging.getLogger(__name__)

RUN_CONFIG_NAME = "run_config.yaml"

# A run may be resumed with other values of these: they say how far to go and what to tell, not what is learnt.
_FREE_ON_RESUME = {
    f"training.{name}"
    for name in ("output_dir", "epochs", "max_steps", "eval_steps", "save_steps", "logging_steps", "patience")
} | {"training.samples", "training.resume", "training.compile", "training.cache_features", "data.max_bad_share"}
_FREE_ON_RESUME |= {name for name in field_types() if name.startswith("generation.")}


def check_writable(output_dir: Path) -> None:
    """Before hours of work, not behind them.

    Raises:
        ConfigError: if the output folder cannot be written to, or made.
    """
    there = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is no folder"
        raise ConfigError(f"training.output_dir {output_dir} cannot be used, for {there} {reason}: choose another.")


def check_same_run(config: RunConfig) -> None:
    """Sees that what the output folder holds was trained with the same config. Stages may have been added to it.

    Raises:
        ConfigError: if it was not.
    """
    output_dir = Path(config.training.output_dir)
    stages = output_dir.glob(STAGE_PATTERN)
    if not config.training.resume or not (find_checkpoints(output_dir) or any(map(holds_progress, stages))):
        return
    before = RunConfig.load(output_dir / RUN_CONFIG_NAME)
    changes = [
        f"{section}.{name}: {old!r} → {new!r}"
        for section in ("model", "data", "training")
        for name, old in dataclasses.asdict(getattr(before, section)).items()
        if (new := getattr(getattr(config, section), name)) != old and f"{section}.{name}" not in _FREE_ON_RESUME
    ]
    names = [[stage["name"] for stage in run.stages] for run in (before, config)]
    if names[0] != names[1][: len(names[0])] or bool(names[0]) != bool(names[1]):
        changes.append(f"stages: {names[0]!r} → {names[1]!r}")
    else:
        changes += [
            f"stages.{title}.{name}: {old!r} → {new!r}"
            for title, was, now in zip(names[0], before.stages, config.stages, strict=False)
            for name in {**was, **now}
            if f"training.{name}" not in _FREE_ON_RESUME
            and (old := was.get(name, "none")) != (new := now.get(name, "none"))
        ]
    if changes:
        raise ConfigError(
            f"{output_dir} holds a run of another config ({'; '.join(changes)}): choose another "
            "training.output_dir, go back to its settings, or start afresh with training.resume false."
        )


def check_processes(checkpoint: Path, now: int) -> None:
    """Sees that a checkpoint was written by `now` processes.

    Raises:
        ConfigError: if it was not.
    """
    if (processes := count_processes(checkpoint)) != now:
        raise ConfigError(
            f"{checkpoint.parent} holds a run of {processes} processes, and these are {now}: start as many, "
            "choose another training.output_dir, or start afresh with training.resume false."
        )


def prepare_folder(config: RunConfig) -> None:
    """Makes the output folder, writes the config there, and clears away what does not belong to the run.

    Raises:
        ConfigError: if it cannot be written to.
    """
    output_dir = Path(config.training.output_dir)
    with writing_to(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        folders = [output_dir, *output_dir.glob(STAGE_PATTERN)]
        for folder in folders:
            remove_leftovers(folder)
        if not config.training.resume:
            # Left there, they would be taken for this run's, and this run's first ones for the oldest.
            for checkpoint in find_checkpoints(output_dir):
                logger.info("Starting afresh: removing %s", checkpoint)
                remove_checkpoint(checkpoint)
            for folder in folders[1:]:
                logger.info("Starting afresh: removing %s", folder)
                shutil.rmtree(folder)
        write_text(output_dir / RUN_CONFIG_NAME, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))

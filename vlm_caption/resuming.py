"""Taking a run up again: what its folder must be like, and what of its config may have changed."""

import dataclasses
import logging
import os
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
from .run_config import ConfigError, RunConfig

logger = logging.getLogger(__name__)

RUN_CONFIG_NAME = "run_config.yaml"

# A run may be resumed with other values of these: they say how far to go and what to tell, not what is learnt.
_FREE_ON_RESUME = {
    f"training.{name}"
    for name in ("output_dir", "epochs", "max_steps", "eval_steps", "save_steps", "logging_steps", "patience")
} | {"training.samples", "training.resume", "training.compile", "training.cache_features", "data.max_bad_share"}


def check_writable(output_dir: Path) -> None:
    """Before hours of work, not behind them.

    Raises:
        ConfigError: if the output folder cannot be written to, or made.
    """
    there = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is no folder"
        raise ConfigError(f"training.output_dir {output_dir} cannot be used, for {there} {reason}: choose another.")


def checkpoint_to_resume(config: RunConfig) -> Path | None:
    """The newest whole checkpoint in the output folder, or None.

    Raises:
        ConfigError: if it belongs to a run of another config.
    """
    output_dir = Path(config.training.output_dir)
    if not config.training.resume or not (whole := find_checkpoints(output_dir)):
        return None
    before = RunConfig.load(output_dir / RUN_CONFIG_NAME)
    now = dataclasses.asdict(config)
    changes = [
        f"{section}.{name}: {old!r} → {new!r}"
        for section, fields in dataclasses.asdict(before).items()
        for name, old in fields.items()
        if (new := now[section][name]) != old and f"{section}.{name}" not in _FREE_ON_RESUME
    ]
    if changes:
        raise ConfigError(
            f"{output_dir} holds a run of another config ({'; '.join(changes)}): choose another "
            "training.output_dir, go back to its settings, or start afresh with training.resume false."
        )
    return whole[-1]


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


def prepare_folder(config: RunConfig, checkpoint: Path | None) -> None:
    """Makes the output folder, writes the config there, and clears away what does not belong to the run.

    Args:
        config: the run's.
        checkpoint: that the run goes on from; without one, all that are there are removed.

    Raises:
        ConfigError: if it cannot be written to.
    """
    output_dir = Path(config.training.output_dir)
    with writing_to(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        remove_leftovers(output_dir)
        if checkpoint is None:
            # Left there, they would be taken for this run's, and this run's first ones for the oldest.
            for folder in find_checkpoints(output_dir):
                logger.info("Starting afresh: removing %s", folder)
                remove_checkpoint(folder)
        write_text(output_dir / RUN_CONFIG_NAME, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))

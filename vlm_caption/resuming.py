"""Taking a run up again: what its folder must be like, and what of its config may have changed."""

import contextlib
import dataclasses
import json
import logging
import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from .checkpoints import (
    count_processes,
    find_checkpoints,
    remove_checkpoint,
    remove_leftovers,
    writing_to,
)
from .console import is_first_process
from .files import write_text
from .run_config import ConfigError, RunConfig

logger = logging.getLogger(__name__)

RUN_CONFIG_NAME = "run_config.yaml"
RUN_DATA_NAME = "run_data.json"
LOCK_NAME = ".lock"

# A run may be resumed with other values of these: they say how far to go and what to tell, not what is learnt.
_FREE_ON_RESUME = {
    *(f"training.{name}" for name in ("output_dir", "epochs", "max_steps", "patience", "resume", "compile")),
    *(f"training.{name}" for name in ("eval_steps", "save_steps", "logging_steps", "samples", "report_to")),
    *("training.cache_features", "data.max_bad_share"),
}


def check_writable(output_dir: Path) -> None:
    """Before hours of work, not behind them.

    Raises:
        ConfigError: if the output folder cannot be written to, or made.
    """
    there = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is no folder"
        raise ConfigError(f"training.output_dir {output_dir} cannot be used, for {there} {reason}: choose another.")


@contextlib.contextmanager
def holding(output_dir: Path) -> Generator[None]:
    """Keeps other runs out of the output folder; the system ends it with the process, however that ends.

    Raises:
        ConfigError: if another run holds the folder, or it cannot be made.
    """
    if not is_first_process():
        yield
        return
    is_new = not output_dir.exists()
    lock = FileLock(output_dir / LOCK_NAME, timeout=0)
    with writing_to(output_dir):
        output_dir.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire()
        except Timeout:
            raise ConfigError(
                f"training.output_dir {output_dir} is in use by another run: wait for it, or choose another."
            ) from None
    try:
        yield
    finally:
        lock.release()
        if is_new and {path.name for path in output_dir.iterdir()} <= {LOCK_NAME}:  # nothing came of it
            (output_dir / LOCK_NAME).unlink(missing_ok=True)
            output_dir.rmdir()


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


def check_data(checkpoint: Path, data: dict[str, Any]) -> None:
    """Sees that a checkpoint is of a run on the same images and captions.

    Args:
        checkpoint: in the run's folder.
        data: as of `CaptionSplits.describe`.

    Raises:
        ConfigError: if it is not.
    """
    path = checkpoint.parent / RUN_DATA_NAME
    if not path.exists():  # a run of an earlier version
        return
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        changes = [
            f"{split}: {_describe_split(before[split])} → {_describe_split(now)}"
            if _describe_split(before[split]) != _describe_split(now)
            else f"{split}: other images' names or captions"
            for split, now in data.items()
            if before[split] != now
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it if the data is what it was.") from error
    if changes:
        raise ConfigError(
            f"{checkpoint.parent} holds a run on other data ({'; '.join(changes)}): choose another "
            "training.output_dir, put the data back, or start afresh with training.resume false."
        )


def _describe_split(split: dict[str, Any]) -> str:
    return f"{split['images']:,} images with {split['captions']:,} captions"


def prepare_folder(config: RunConfig, checkpoint: Path | None, data: dict[str, Any]) -> None:
    """Writes config and data of the run to its output folder, and clears away what does not belong to it.

    Args:
        config: the run's.
        data: as of `CaptionSplits.describe`.
        checkpoint: that the run goes on from; without one, all that are there are removed.

    Raises:
        ConfigError: if it cannot be written to.
    """
    output_dir = Path(config.training.output_dir)
    with writing_to(output_dir):
        remove_leftovers(output_dir)
        if checkpoint is None:
            # Left there, they would be taken for this run's, and this run's first ones for the oldest.
            for folder in find_checkpoints(output_dir):
                logger.info("Starting afresh: removing %s", folder)
                remove_checkpoint(folder)
        write_text(output_dir / RUN_DATA_NAME, json.dumps(data, indent=2) + "\n")
        write_text(output_dir / RUN_CONFIG_NAME, yaml.safe_dump(dataclasses.asdict(config), sort_keys=False))

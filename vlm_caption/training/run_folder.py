"""A run's folder: who may write to it, and what must be the same for a run to be resumed there."""

import contextlib
import dataclasses
import json
import logging
import os
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import torch
import yaml
from filelock import FileLock, Timeout

from ..config.run_config import RUN_CONFIG_NAME, RunConfig
from ..core.console import is_first_process
from ..core.errors import ConfigError
from ..core.files import write_text
from .checkpoints import count_processes, find_checkpoints, remove_checkpoint, remove_leftovers, writing_to
from .stages import STAGE_PATTERN, holds_progress, holds_weights, plan_stages

logger = logging.getLogger(__name__)

RUN_DATA_NAME = "run_data.json"
LOCK_NAME = ".lock"

# A run may be resumed with other values of these: they say how far to go and what to report, not what is learnt.
_FREE_ON_RESUME = {
    *(f"training.{name}" for name in ("output_dir", "epochs", "max_steps", "patience", "resume", "compile")),
    *(f"training.{name}" for name in ("eval_steps", "save_steps", "logging_steps", "samples", "report_to")),
    *("training.cache_features", "data.max_bad_share"),
}


def check_writable(output_dir: Path) -> None:
    """Checks that the output folder can be made and written to, before hours of work and not after them.

    Raises:
        ConfigError: It cannot.
    """
    there = next(folder for folder in (output_dir, *output_dir.absolute().parents) if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        reason = "may not be written to" if there.is_dir() else "is no folder"
        raise ConfigError(f"training.output_dir {output_dir} cannot be used, for {there} {reason}: choose another.")


@contextlib.contextmanager
def holding(output_dir: Path) -> Generator[None]:
    """Keeps other runs out of the output folder. The lock ends with the process, however that ends.

    Raises:
        ConfigError: Another run uses the folder, or it cannot be made.
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


def check_same_run(config: RunConfig) -> None:
    """Checks that the run in the output folder, if there is one, has the same config. Stages may have been added.

    Raises:
        ConfigError: It has another one.
    """
    output_dir = Path(config.training.output_dir)
    if not _goes_on(config):
        return
    before = RunConfig.load(output_dir / RUN_CONFIG_NAME)
    changes = [
        f"{section}.{name}: {old!r} → {new!r}"
        for section in ("model", "data", "training", "generation")
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
        changes += _changes_of_finished(before, config)
    if changes:
        further = (
            f" The run is finished: to train its captioner further with other settings, choose another "
            f"training.output_dir and add --init-from {output_dir}."
        )
        raise ConfigError(
            f"{output_dir} holds a run of another config ({'; '.join(changes)}): choose another "
            "training.output_dir, go back to its settings, or start afresh with training.resume false."
            + _advice_on_warmup(before, config)
            + (further if holds_weights(output_dir) else "")
        )


def _advice_on_warmup(before: RunConfig, config: RunConfig) -> str:
    """Returns what to add to the command of a run that an earlier version began with its default of 100 steps."""
    steps = before.training.warmup_steps
    if steps is None or config.training.warmup_steps is not None:
        return ""
    return f" Versions differ in their default warm-up: to go on with this run, add --warmup-steps {steps}."


def _changes_of_finished(before: RunConfig, config: RunConfig) -> list[str]:
    """Returns the changes in how far finished stages go, which are not run again."""
    return [
        f"stages.{stage.name}.{name}, of a finished stage: {old!r} → {new!r}"
        for settings, stage in zip(before.stage_settings(), plan_stages(config), strict=False)
        if stage.is_finished
        for name in ("epochs", "max_steps")
        if (old := getattr(settings, name)) != (new := getattr(stage.settings, name))
    ]


def _goes_on(config: RunConfig) -> bool:
    """Returns whether a run resumes what its output folder holds."""
    output_dir = Path(config.training.output_dir)
    stages = output_dir.glob(STAGE_PATTERN)
    return config.training.resume and bool(find_checkpoints(output_dir) or any(map(holds_progress, stages)))


def check_processes(checkpoint: Path, now: int) -> None:
    """Checks that a checkpoint was written by `now` processes.

    Raises:
        ConfigError: It was not.
    """
    if (processes := count_processes(checkpoint)) != now:
        raise ConfigError(
            f"{checkpoint.parent} holds a run of {processes} processes, and these are {now}: start as many, "
            "choose another training.output_dir, or start afresh with training.resume false."
        )


def check_data(config: RunConfig, data: dict[str, Any]) -> None:
    """Checks that the run in the output folder, if there is one, has the same images and captions.

    Args:
        config: The run's config.
        data: The run's data; see `CaptionSplits.describe`.

    Raises:
        ConfigError: It has others.
    """
    path = Path(config.training.output_dir) / RUN_DATA_NAME
    if not _goes_on(config) or not path.exists():  # earlier versions wrote none
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
            f"{path.parent} holds a run on other data ({'; '.join(changes)}): choose another "
            "training.output_dir, put the data back, or start afresh with training.resume false."
        )


def _describe_split(split: dict[str, Any]) -> str:
    return f"{split['images']:,} images with {split['captions']:,} captions"


def prepare_folder(config: RunConfig, data: dict[str, Any]) -> None:
    """Writes the config, the data and the number of threads of a run to its folder, and removes what is not the run's.

    Args:
        config: The run's config.
        data: The run's data; see `CaptionSplits.describe`.

    Raises:
        ConfigError: The folder cannot be written to.
    """
    output_dir = Path(config.training.output_dir)
    with writing_to(output_dir):
        folders = [output_dir, *output_dir.glob(STAGE_PATTERN)]
        for folder in folders:
            remove_leftovers(folder)
        if not config.training.resume:
            # They would be taken for this run's, and this run's first ones would be removed as the oldest.
            for checkpoint in find_checkpoints(output_dir):
                logger.info("Starting afresh: removing %s", checkpoint)
                remove_checkpoint(checkpoint)
            for folder in folders[1:]:
                logger.info("Starting afresh: removing %s", folder)
                shutil.rmtree(folder)
        for stage in plan_stages(config):
            stage.folder.mkdir(parents=True, exist_ok=True)
        record = data | {"threads": torch.get_num_threads()}  # see `keep_threads`
        write_text(output_dir / RUN_DATA_NAME, json.dumps(record, indent=2) + "\n")
        write_text(output_dir / RUN_CONFIG_NAME, yaml.safe_dump(config.to_dict(), sort_keys=False))

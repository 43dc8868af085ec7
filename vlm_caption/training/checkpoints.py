"""Checkpoints of a run: all that it needs to go on as if it had not stopped.

A checkpoint is a folder `checkpoint-STEP`. It is written as `checkpoint.partial`, brought to the disk and renamed, so
that a folder with the final name is complete, whenever the machine stops. Beside the bridge it holds the optimizer's
state, the schedule, the random state of each process, the trained weights with the best evaluation, and the run's
state, which knows the step (and so the place in the data), the log and the best evaluation. All files are safetensors
or JSON; there is no pickle.
"""

import contextlib
import json
import random
import re
import shutil
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from ..core.errors import CheckpointError, ConfigError
from ..towers.checkpoints import read_safetensors
from .sharding import gather_tensor, scatter_tensor
from .state import STATE_NAME, RunState

OPTIMIZER_NAME = "optimizer.safetensors"
SCHEDULER_NAME = "scheduler.json"
RNG_STATES_NAME = "rng_states.json"
BEST_NAME = "best.safetensors"

PARTIAL_NAME = "checkpoint.partial"
_REMOVED = "checkpoint.removed"
_STEP = re.compile(r"checkpoint-(\d+)")


def find_checkpoints(output_dir: Path) -> list[Path]:
    """Returns the complete checkpoints in a run's folder, the oldest first."""
    # The state is written last: a folder without it was copied in part.
    return [folder for folder in _checkpoint_folders(output_dir) if (folder / STATE_NAME).is_file()]


def _checkpoint_folders(output_dir: Path) -> list[Path]:
    steps = {
        folder: int(match[1])
        for folder in output_dir.glob("checkpoint-*")
        if folder.is_dir() and (match := _STEP.fullmatch(folder.name))
    }
    return sorted(steps, key=steps.__getitem__)


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint. If it is stopped half-way, it leaves nothing that looks like a checkpoint."""
    # The new name is the checkpoint's own: a folder that cannot be removed stays, and must not block the next one.
    removed = folder.with_name(folder.name.replace("checkpoint-", f"{_REMOVED}-"))
    folder.rename(removed)
    # Network file systems keep files that are still open; `remove_leftovers` tries again.
    shutil.rmtree(removed, ignore_errors=True)


def remove_leftovers(output_dir: Path) -> None:
    """Removes what a killed process left of checkpoints and files that it was writing or removing."""
    whole = find_checkpoints(output_dir)
    for folder in (output_dir / PARTIAL_NAME, *_checkpoint_folders(output_dir)):
        if folder not in whole and folder.exists():
            shutil.rmtree(folder)
    for folder in output_dir.glob(f"{_REMOVED}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in output_dir.glob(".*.partial"):  # of `write_text`
        file.unlink()


@contextlib.contextmanager
def writing_to(output_dir: Path) -> Generator[None]:
    """Turns a failure to write to a run's folder into one sentence.

    Raises:
        ConfigError: The folder cannot be written to, for example because the disk is full.
    """
    try:
        yield
    except (OSError, SafetensorError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else " ".join(str(error).split())
        kept = [folder.name for folder in find_checkpoints(output_dir)][-1:]
        raise ConfigError(
            f"training.output_dir {output_dir} cannot be written to ({reason}): make room or choose another; "
            + (f"the same command goes on from {kept[0]}." if kept else "nothing is saved there yet.")
        ) from error


@contextlib.contextmanager
def reading(checkpoint: str | Path) -> Generator[None]:
    """Turns whatever a damaged checkpoint raises into one sentence.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint} is damaged ({reason}): remove it, and the same command goes on from the checkpoint before "
            "it, or starts afresh."
        ) from error


def read_state(checkpoint: Path) -> RunState:
    """Reads the state of a run at a checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    with reading(checkpoint):
        return RunState.load(checkpoint / STATE_NAME)


def count_processes(checkpoint: Path) -> int:
    """Returns how many processes wrote a checkpoint together.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    with reading(checkpoint):
        return len(json.loads((checkpoint / RNG_STATES_NAME).read_text()))


def load_weights(model: Any, folder: Path) -> None:
    """Puts the weights of a saved bridge into a model of the same parts.

    Raises:
        CheckpointError: They are damaged, or not of this model.
    """
    with reading(folder):
        load_trained(model, read_safetensors(folder))


def load_trained(model: Any, weights: dict[str, torch.Tensor]) -> None:
    """Puts some of a model's weights into it, sharded or not.

    Raises:
        ValueError: There is one that the model does not have, or has in another shape.
    """
    # Missing ones are frozen towers. An unknown one would be left out silently.
    own = model.state_dict()
    if unknown := [name for name in weights if name not in own]:
        raise ValueError(f"it holds {unknown[0]}, which is no part of the model")
    check_shapes(weights, own)
    model.load_state_dict({name: scatter_tensor(tensor, own[name]) for name, tensor in weights.items()}, strict=False)


def check_shapes(weights: Mapping[str, torch.Tensor], own: Mapping[str, torch.Tensor]) -> None:
    """Checks that weights have the shapes of those of the same names that a run has.

    Raises:
        ValueError: One has another shape.
    """
    for name, weight in weights.items():
        if weight.shape != own[name].shape:
            raise ValueError(f"{name} has the shape {list(weight.shape)} and not {list(own[name].shape)}")


def read_best_weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """Reads the trained weights that had the best evaluation so far; {} if there was none.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    if read_state(checkpoint).best_global_step is None:
        return {}
    with reading(checkpoint):
        # Cloned: a loaded tensor maps the file, which is removed while the run goes on.
        return {name: tensor.clone() for name, tensor in load_file(checkpoint / BEST_NAME).items()}


def save_best_weights(weights: dict[str, torch.Tensor], checkpoint: Path) -> None:
    """Writes the trained weights that had the best evaluation so far, if there was one."""
    if weights:
        save_file(weights, checkpoint / BEST_NAME)


OptimizerState = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


def optimizer_state(optimizer: torch.optim.Optimizer) -> OptimizerState:
    """Returns an optimizer's tensors, by names such as `"0.exp_avg"`, and its groups. Sharded tensors are gathered."""
    state = optimizer.state_dict()
    tensors = {
        f"{index}.{name}": gather_tensor(tensor).contiguous()
        for index, values in state["state"].items()
        for name, tensor in values.items()
    }
    return tensors, state["param_groups"]


def save_optimizer(state: OptimizerState, schedule: Any, checkpoint: Path) -> None:
    """Writes the state of an optimizer and of its learning rate schedule."""
    tensors, groups = state
    save_file(tensors, checkpoint / OPTIMIZER_NAME, metadata={"param_groups": json.dumps(groups)})
    (checkpoint / SCHEDULER_NAME).write_text(json.dumps(schedule.state_dict()))


def load_optimizer(optimizer: torch.optim.Optimizer, schedule: Any, checkpoint: Path) -> None:
    """Puts an optimizer and its schedule into the state that they had at a checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    with reading(checkpoint):
        values: dict[int, dict[str, torch.Tensor]] = {}
        with safe_open(checkpoint / OPTIMIZER_NAME, framework="pt") as file:
            groups = json.loads(file.metadata()["param_groups"])
            for key in file.keys():  # noqa: SIM118, it is no dict
                index, _, name = key.partition(".")
                tensor = file.get_tensor(key).clone()  # see `read_best_weights`
                if tensor.ndim:  # all but the number of steps
                    tensor = scatter_tensor(tensor, parameters[int(index)])
                values.setdefault(int(index), {})[name] = tensor
        optimizer.load_state_dict({"state": values, "param_groups": groups})
        schedule.load_state_dict(json.loads((checkpoint / SCHEDULER_NAME).read_text()))


def random_state(device: torch.device) -> dict[str, Any]:
    """Returns the state of every random generator of this process, as JSON takes it."""
    legacy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state().tolist(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state().tolist(),
    }


def save_random_states(states: list[dict[str, Any]], checkpoint: Path) -> None:
    """Writes the random states of all processes, in order."""
    (checkpoint / RNG_STATES_NAME).write_text(json.dumps(states))


def load_random_state(checkpoint: Path, process: int, device: torch.device) -> None:
    """Puts this process's random generators into the state that they had at a checkpoint.

    Raises:
        CheckpointError: The checkpoint is damaged.
    """
    with reading(checkpoint):
        state = json.loads((checkpoint / RNG_STATES_NAME).read_text())[process]
        version, words, gauss = state["python"]
        random.setstate((version, tuple(words), gauss))
        numpy = state["numpy"]
        key = np.array(numpy["state"]["key"], dtype=np.uint32)
        np.random.set_state(numpy | {"state": numpy["state"] | {"key": key}})
        torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
        if state["device"] is not None and device.type != "cpu":
            torch.get_device_module(device).set_rng_state(torch.tensor(state["device"], dtype=torch.uint8))

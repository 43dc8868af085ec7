"""Checkpoints of a run: all that it needs to go on as if it had not stopped, whole or not there, and no pickle.

A checkpoint is a folder `checkpoint-STEP`. It is written as `checkpoint.partial`, brought to the disk and renamed, so
a folder of that name is whole, whenever the machine stops. Beside the bridge it holds the optimiser's state, the
schedule, each process's random state, the trained weights that were best on dev, and Trainer's own state, which knows
the step (and with it the place in the data), the log and the best dev loss.
"""

import contextlib
import json
import random
import shutil
from collections.abc import Generator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from transformers import ProcessorMixin, Trainer, TrainerState
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import sort_checkpoints

from ..core.errors import CheckpointError, ConfigError
from ..core.files import move_folder
from ..towers.checkpoints import read_safetensors

OPTIMIZER_NAME = "optimizer.safetensors"
SCHEDULER_NAME = "scheduler.json"
RNG_STATES_NAME = "rng_states.json"
BEST_NAME = "best.safetensors"

PARTIAL_NAME = "checkpoint.partial"
_REMOVED = "checkpoint.removed"
_KEPT = 2


def find_checkpoints(output_dir: Path) -> list[Path]:
    """The whole checkpoints in a run's folder, the oldest first."""
    # The state is written last: where folders are copied without it, what is there was cut short.
    return [Path(folder) for folder in sort_checkpoints(str(output_dir)) if Path(folder, TRAINER_STATE_NAME).is_file()]


def remove_checkpoint(folder: Path) -> None:
    """Removes a checkpoint; stopped half-way, it leaves nothing that looks like one."""
    # By a name of its own: what cannot be removed stays, and is not to be in the next one's way.
    removed = folder.with_name(folder.name.replace("checkpoint-", f"{_REMOVED}-"))
    folder.rename(removed)
    # Network file systems keep files that are still open; `remove_leftovers` gets another chance.
    shutil.rmtree(removed, ignore_errors=True)


def remove_leftovers(output_dir: Path) -> None:
    """Removes what a process that was killed left of checkpoints and files it was writing or removing."""
    whole = find_checkpoints(output_dir)
    for folder in (output_dir / PARTIAL_NAME, *map(Path, sort_checkpoints(str(output_dir)))):
        if folder not in whole and folder.exists():
            shutil.rmtree(folder)
    for folder in output_dir.glob(f"{_REMOVED}*"):
        shutil.rmtree(folder, ignore_errors=True)
    for file in output_dir.glob(".*.partial"):  # of `write_text`
        file.unlink()


@contextlib.contextmanager
def writing_to(output_dir: Path) -> Generator[None]:
    """Makes a sentence of what goes wrong when a run's folder is written to.

    Raises:
        ConfigError: if it cannot be, for example because the disk is full.
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


class CheckpointTrainer(Trainer):
    """Trainer, whose checkpoints are whole or not there, hold no pickle, and know the best weights so far.

    Attributes:
        best_weights: the trained parameters at the lowest dev loss so far, on the CPU; empty before the first one.
    """

    model: Any
    processing_class: ProcessorMixin
    optimizer: torch.optim.Optimizer
    lr_scheduler: torch.optim.lr_scheduler.LRScheduler

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.best_weights: dict[str, torch.Tensor] = {}

    def _determine_best_metric(self, metrics, trial):
        is_best = super()._determine_best_metric(metrics, trial)
        if is_best:
            self.best_weights = {
                name: parameter.detach().cpu().clone()
                for name, parameter in self.model.named_parameters()
                if parameter.requires_grad
            }
        return is_best

    def load_best_weights(self) -> None:
        """Puts the best weights into the model, where the dev loss was ever taken."""
        if self.best_weights:
            self.model.load_state_dict(self.best_weights, strict=False)

    def _save_checkpoint(self, model, trial):
        output_dir = Path(str(self.args.output_dir))
        partial = output_dir / PARTIAL_NAME
        with writing_to(output_dir):
            self.save_model(str(partial), _internal_call=True)
            self._save_optimizer_and_scheduler(str(partial))
            self._save_rng_state(str(partial))  # waits for all processes
            if not self.args.should_save:
                return
            if self.best_weights:
                save_file(self.best_weights, partial / BEST_NAME)
            self.state.save_to_json(str(partial / TRAINER_STATE_NAME))
            move_folder(partial, output_dir / f"checkpoint-{self.state.global_step}")
            for folder in find_checkpoints(output_dir)[:-_KEPT]:
                remove_checkpoint(folder)

    def _save(self, output_dir=None, state_dict=None):
        # Trainer's own puts a pickle of its arguments beside the model.
        if self.args.should_save and output_dir is not None:
            # Under the names of the model at hand: resuming looks for no others.
            self.model.save_pretrained(output_dir, state_dict=state_dict, save_original_format=False)
            self.processing_class.save_pretrained(output_dir)

    def _save_optimizer_and_scheduler(self, output_dir):
        if self.args.should_save:
            state = self.optimizer.state_dict()
            tensors = {
                f"{index}.{name}": tensor.contiguous()
                for index, values in state["state"].items()
                for name, tensor in values.items()
            }
            groups = {"param_groups": json.dumps(state["param_groups"])}
            save_file(tensors, Path(output_dir, OPTIMIZER_NAME), metadata=groups)
            Path(output_dir, SCHEDULER_NAME).write_text(json.dumps(self.lr_scheduler.state_dict()))

    def _load_optimizer_and_scheduler(self, checkpoint):
        if checkpoint is not None:
            with _reading(checkpoint):
                values: dict[int, dict[str, torch.Tensor]] = {}
                with safe_open(Path(checkpoint, OPTIMIZER_NAME), framework="pt") as file:
                    groups = json.loads(file.metadata()["param_groups"])
                    for key in file.keys():  # noqa: SIM118, it is no dict
                        index, _, name = key.partition(".")
                        # Cloned, for it maps the file, which is removed while the run goes on.
                        values.setdefault(int(index), {})[name] = file.get_tensor(key).clone()
                self.optimizer.load_state_dict({"state": values, "param_groups": groups})
                self.lr_scheduler.load_state_dict(json.loads(Path(checkpoint, SCHEDULER_NAME).read_text()))

    def _save_rng_state(self, output_dir):
        states = gather_object([_random_state(self.args.device)])
        if self.args.should_save:
            Path(output_dir, RNG_STATES_NAME).write_text(json.dumps(states))

    def _load_rng_state(self, checkpoint):
        if checkpoint is not None:
            with _reading(checkpoint):
                states = json.loads(Path(checkpoint, RNG_STATES_NAME).read_text())
            _set_random_state(states[self.args.process_index], self.args.device)

    def _issue_warnings_after_load(self, load_result):
        # What is missing are frozen towers. What is not known would be left out without a word.
        if unknown := load_result.unexpected_keys:
            raise ValueError(f"it holds {unknown[0]}, which is no part of the model")

    def _load_from_checkpoint(self, resume_from_checkpoint, model=None):
        with _reading(resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)
            if read_state(resume_from_checkpoint).best_global_step is not None:
                best = load_file(Path(resume_from_checkpoint, BEST_NAME))
                self.best_weights = {name: tensor.clone() for name, tensor in best.items()}


def read_state(checkpoint: str | Path) -> TrainerState:
    """What Trainer knows of a run at a checkpoint.

    Raises:
        CheckpointError: if it is damaged.
    """
    with _reading(checkpoint):
        return TrainerState.load_from_json(str(Path(checkpoint, TRAINER_STATE_NAME)))


def load_weights(model: Any, folder: Path) -> None:
    """Puts the weights of a saved bridge into a model of the same parts.

    Raises:
        CheckpointError: if they are damaged, or not of this model.
    """
    with _reading(folder):
        unknown = model.load_state_dict(read_safetensors(folder), strict=False).unexpected_keys
        if unknown:
            raise ValueError(f"it holds {unknown[0]}, which is no part of the model")


def count_processes(checkpoint: Path) -> int:
    """How many processes wrote a checkpoint together.

    Raises:
        CheckpointError: if it is damaged.
    """
    with _reading(checkpoint):
        return len(json.loads((checkpoint / RNG_STATES_NAME).read_text()))


@contextlib.contextmanager
def _reading(checkpoint: str | Path) -> Generator[None]:
    try:
        yield
    except (OSError, SafetensorError, ValueError, KeyError, TypeError) as error:
        reason = " ".join(str(error).split())
        raise CheckpointError(
            f"{checkpoint} is damaged ({reason}): remove it, and the same command goes on from the checkpoint before "
            "it, or starts afresh."
        ) from error


def _random_state(device: torch.device) -> dict:
    """The state of every random generator of this process, as JSON takes it."""
    legacy = np.random.get_state(legacy=False)
    return {
        "python": random.getstate(),
        "numpy": {**legacy, "state": {**legacy["state"], "key": legacy["state"]["key"].tolist()}},
        "torch": torch.get_rng_state().tolist(),
        "device": None if device.type == "cpu" else torch.get_device_module(device).get_rng_state().tolist(),
    }


def _set_random_state(state: dict, device: torch.device) -> None:
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))
    numpy = state["numpy"]
    np.random.set_state(numpy | {"state": numpy["state"] | {"key": np.array(numpy["state"]["key"], dtype=np.uint32)}})
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if state["device"] is not None and device.type != "cpu":
        torch.get_device_module(device).set_rng_state(torch.tensor(state["device"], dtype=torch.uint8))

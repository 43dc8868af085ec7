"""How far a run has come: its step, its log, and which weights are best so far."""

import dataclasses
import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STATE_NAME = "trainer_state.json"  # the name that transformers' Trainer gives it, and earlier versions gave it


@dataclass
class RunState:
    """What a checkpoint's `trainer_state.json` holds.

    Attributes:
        global_step: How many optimizer steps have been made.
        epoch: How many times the images have been gone through; a fraction inside an epoch.
        max_steps: The number of steps at which the run ends.
        schedule_start: The step at which the learning rate schedule began: 0, or the step at which a finished run was
            taken further.
        best_metric: The best value so far of what weights are chosen by: dev loss, or dev CIDEr; None before the
            first evaluation.
        best_global_step: The step with that value.
        log_history: All log entries, in order. Each has `step`.
    """

    global_step: int = 0
    epoch: float = 0.0
    max_steps: int = 0
    schedule_start: int = 0
    best_metric: float | None = None
    best_global_step: int | None = None
    log_history: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(cls, path: Path) -> "RunState":
        """Reads a state. Fields that only transformers' Trainer has are left out; earlier versions have no
        `schedule_start`.

        Raises:
            OSError, ValueError, KeyError, TypeError: The file is damaged.
        """
        content: dict[str, Any] = {"schedule_start": 0, **json.loads(path.read_text(encoding="utf-8"))}
        return cls(**{known.name: content[known.name] for known in dataclasses.fields(cls)})

    def save(self, path: Path) -> None:
        """Writes the state as JSON."""
        path.write_text(json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True) + "\n", encoding="utf-8")

    def log(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Adds an entry to the log, with the epoch and the step, and returns it."""
        self.log_history.append(entry | {"epoch": self.epoch, "step": self.global_step})
        return self.log_history[-1]

    def seconds(self) -> float | None:
        """Returns how long the run has trained, as its log says; None if the log does not say."""
        return next((entry["seconds"] for entry in reversed(self.log_history) if "seconds" in entry), None)

    def choose_best(self, evaluation: dict[str, Any]) -> bool:
        """Notes the step of an evaluation as the best one if it is, and returns whether it is.

        Weights are chosen by dev CIDEr where it is measured, and by dev loss among equal CIDEr or without it. The
        first of equals stays. A loss that is NaN is worse than any other.

        Args:
            evaluation: The log entry of the current step, with `eval_loss` and perhaps `eval_cider`.
        """
        cider, loss = evaluation.get("eval_cider"), evaluation["eval_loss"]
        if self.best_global_step is not None:
            best = self.at_best("eval_cider"), self.at_best("eval_loss")
            if not _quality(cider, loss) > _quality(*best):
                return False
        self.best_metric = loss if cider is None else cider
        self.best_global_step = self.global_step
        return True

    def at_best(self, name: str) -> float | None:
        """Returns what was measured at the best step; None if it was not."""
        return next(
            (
                entry[name]
                for entry in reversed(self.log_history)
                if entry["step"] == self.best_global_step and name in entry
            ),
            None,
        )

    def is_out_of_patience(self, patience: int) -> bool:
        """Returns whether the last `patience` evaluations were no better than the best one; never for 0."""
        # Counted in the log, so that a resumed run counts on.
        worse = [
            entry
            for entry in self.log_history
            if "eval_loss" in entry and entry["step"] > (self.best_global_step or 0)
        ]
        return 0 < patience <= len(worse)


def _quality(cider: float | None, loss: float | None) -> tuple[float, float]:
    """Returns what evaluations are compared by: the greater, the better."""
    return cider or 0.0, -math.inf if loss is None or math.isnan(loss) else -loss

"""`metrics.jsonl`: what a run has logged, one JSON object a line, to be followed while it trains.

The lines are those of Trainer's `log_history`, which every checkpoint holds. A run that is taken up again writes the
file anew from there, so it has every step once, whatever the process that was killed had written last.
"""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ..core.files import write_text
from .checkpoints import writing_to

METRICS_NAME = "metrics.jsonl"


def write_metrics(output_dir: Path, log: Iterable[Mapping[str, Any]]) -> None:
    """Writes a run's whole log in place of what is there.

    Raises:
        OSError: if it cannot be written.
    """
    write_text(output_dir / METRICS_NAME, "".join(map(_line, log)))


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """A log that was written whole; [] where there is none."""
    path = output_dir / METRICS_NAME
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def training_seconds(log: Sequence[Mapping[str, Any]]) -> float | None:
    """How long the run of a log has trained, also before it was taken up again; None is not known."""
    return next((entry["seconds"] for entry in reversed(log) if "seconds" in entry), None)


class MetricsLog(TrainerCallback):
    """Adds each log entry to a run's `metrics.jsonl` as it comes; the first process does.

    Raises:
        ConfigError: if the file cannot be written.
    """

    def __init__(self):
        self._written = 0

    def on_train_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        if state.is_world_process_zero:
            output_dir = Path(args.output_dir)
            with writing_to(output_dir):
                output_dir.mkdir(parents=True, exist_ok=True)
                write_metrics(output_dir, state.log_history)
            self._written = len(state.log_history)

    def on_log(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        if not state.is_world_process_zero:
            return
        output_dir = Path(args.output_dir)
        with writing_to(output_dir), (output_dir / METRICS_NAME).open("a", encoding="utf-8") as file:
            file.writelines(map(_line, state.log_history[self._written :]))
        self._written = len(state.log_history)

    def on_evaluate(self, args, state, control, **kwargs):
        """As of TrainerCallback: sample captions stand in the history by now."""
        self.on_log(args, state, control)


def _line(entry: Mapping[str, Any]) -> str:
    ordered = {"step": entry["step"], **entry}
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in ordered.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"

"""`metrics.jsonl`: what a run has logged, one JSON object a line, to be followed while it trains.

The lines are those of the run's state, which every checkpoint holds. A resumed run writes the file anew from there, so
every step stands there once, whatever a killed process had written last.
"""

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..core.text import read_lines

METRICS_NAME = "metrics.jsonl"


def write_metrics(output_dir: Path, log: Iterable[Mapping[str, Any]]) -> None:
    """Writes a run's whole log in place of what is there.

    Raises:
        OSError: The file cannot be written.
    """
    write_text(output_dir / METRICS_NAME, "".join(map(_line, log)))


def append_metrics(output_dir: Path, entry: Mapping[str, Any]) -> None:
    """Adds a log entry.

    Raises:
        OSError: The file cannot be written.
    """
    with (output_dir / METRICS_NAME).open("a", encoding="utf-8") as file:
        file.write(_line(entry))


def read_metrics(output_dir: Path) -> list[dict[str, Any]]:
    """Returns a log that was written whole; [] if there is none.

    Raises:
        DataError: The file cannot be read.
    """
    path = output_dir / METRICS_NAME
    return [json.loads(line) for _, line in read_lines(path)] if path.exists() else []


def _line(entry: Mapping[str, Any]) -> str:
    ordered = {"step": entry["step"], **entry}
    finite = {
        name: None if isinstance(value, float) and not math.isfinite(value) else value
        for name, value in ordered.items()
    }
    return json.dumps(finite, ensure_ascii=False) + "\n"

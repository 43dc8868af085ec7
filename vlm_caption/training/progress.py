"""What the terminal shows while a run trains: a progress bar, or plain lines where there is no terminal."""

import logging
import sys
import time
from typing import Any, Protocol

from tqdm import tqdm

from ..core.console import describe_seconds
from .state import RunState

logger = logging.getLogger(__name__)


class Progress(Protocol):
    """Shows how far a run is."""

    def advance(self, state: RunState) -> None:
        """Is called after every step."""

    def log(self, state: RunState, entry: dict[str, Any]) -> None:
        """Is called for every log entry of the training loss or an evaluation."""

    def close(self) -> None:
        """Is called at the end."""


def open_progress(state: RunState) -> Progress:
    """Returns a bar if stderr is a terminal, else plain lines."""
    return ProgressBar(state) if sys.stderr.isatty() else PlainLines(state)


class PlainLines:
    """One line for each log entry."""

    def __init__(self, state: RunState):
        self._start, self._first_step = time.monotonic(), state.global_step

    def advance(self, state: RunState) -> None:
        """Shows nothing."""

    def log(self, state: RunState, entry: dict[str, Any]) -> None:
        """Writes a line, with the time left if the entry is of the training loss."""
        line = f"step {state.global_step}/{state.max_steps}  {_describe(entry)}"
        done = state.global_step - self._first_step
        if "loss" in entry and done and state.global_step < state.max_steps:
            left = (time.monotonic() - self._start) / done * (state.max_steps - state.global_step)
            line += f"  {describe_seconds(left)} left"
        logger.info("%s", line)

    def close(self) -> None:
        """Shows nothing."""


class ProgressBar:
    """A bar that counts steps and shows the last loss; evaluations are lines above it."""

    def __init__(self, state: RunState):
        # `initial`: steps made before a restart took none of this time.
        self.bar = tqdm(total=state.max_steps, initial=state.global_step, unit=" steps", dynamic_ncols=True)

    def advance(self, state: RunState) -> None:
        """Moves the bar to the current step."""
        self.bar.update(state.global_step - self.bar.n)

    def log(self, state: RunState, entry: dict[str, Any]) -> None:
        """Shows the training loss behind the bar, or writes a line for an evaluation."""
        if "loss" in entry:
            self.bar.set_postfix_str(_describe(entry))
        else:
            self.bar.write(f"step {state.global_step}/{state.max_steps}  {_describe(entry)}", file=sys.stderr)

    def close(self) -> None:
        """Leaves the bar as it is."""
        self.bar.close()


def _describe(entry: dict[str, Any]) -> str:
    """Returns the values of a log entry that a person follows."""
    shown = {
        "loss": ("loss {:.4g}", 1),
        "reward": ("reward {:.3f}", 1),
        "captions_per_second": ("{:.4g} captions/s", 1),
        "eval_loss": ("dev loss {:.4f}", 1),
        "eval_cider": ("dev CIDEr {:.1f}", 100),  # the scale that papers use
    }
    return "  ".join(text.format(entry[name] * factor) for name, (text, factor) in shown.items() if name in entry)

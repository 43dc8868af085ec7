"""What SIGTERM (a scheduler's) and SIGINT (Ctrl-C) do to a run: it ends at once where nothing can be lost, and with a
checkpoint where something can."""

import logging
import signal
import threading

import torch
from transformers import TrainerCallback

logger = logging.getLogger(__name__)


class Interrupted(KeyboardInterrupt):
    """A signal ended the run; `signum` is its number, and 128 more the exit code that a shell expects."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals(TrainerCallback):
    """Listens to SIGTERM and SIGINT while it is entered (`with`).

    During steps a signal lets the step end, has a checkpoint saved and ends the training; of several processes, all
    end at the same step. At any other time `Interrupted` is raised where the program is.

    Attributes:
        received: the number of the signal that ended the training; 0: none.
    """

    def __init__(self):
        self.received = 0
        self._in_steps = False
        self._handlers: dict[signal.Signals, object] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python refuses
            self._handlers = {which: signal.signal(which, self._receive) for which in (signal.SIGTERM, signal.SIGINT)}
        return self

    def __exit__(self, *exception) -> None:
        for which, handler in self._handlers.items():
            signal.signal(which, handler)  # ty: ignore[invalid-argument-type]

    def _receive(self, signum: int, frame: object) -> None:
        if not self._in_steps:
            raise Interrupted(signum)
        if not self.received:
            logger.info("%s: saving a checkpoint at the end of this step", signal.Signals(signum).name)
        self.received = signum

    def on_train_begin(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        self._in_steps = True

    def on_step_end(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        if args.world_size > 1:
            received = torch.tensor(self.received, device=args.device)
            torch.distributed.all_reduce(received, torch.distributed.ReduceOp.MAX)
            self.received = int(received)
        if self.received:
            control.should_save = control.should_training_stop = True

    def on_train_end(self, args, state, control, **kwargs):
        """As of TrainerCallback."""
        self._in_steps = False

"""Ends a command on SIGTERM (a scheduler's) or SIGINT (Ctrl-C), so that no signal and no finished work is lost.

Python runs a signal's handler between two instructions of the main thread. An exception raised there unwinds whatever
is running. If that is a finaliser, Python reports "Exception ignored in …" and carries on, and the signal would be
lost. So the handler here also remembers the signal, and long loops call `raise_if_stopped` between two items.
"""

import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Generator
from typing import Any

logger = logging.getLogger(__name__)

# In seconds. A launcher passes a Ctrl-C on to processes that the terminal has already interrupted. A person is slower.
_SECOND_PRESS = 1.0


class Interrupted(KeyboardInterrupt):
    """A signal ended the command.

    Attributes:
        signum: The number of the signal. A shell expects 128 more as the exit code.
    """

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


class StopSignals:
    """Handles SIGTERM and SIGINT inside a `with` block.

    A signal raises `Interrupted` where the program is. Inside `deferred`, it only sets `received`, and the caller ends
    when its work is safe; a second Ctrl-C then raises `Interrupted` at once.

    Attributes:
        received: The number of the last signal; 0 before the first one.
    """

    _active: "StopSignals | None" = None

    def __init__(self):
        self.received = 0
        self._is_deferred = False
        self._received_at = 0.0
        self._handlers: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopSignals":
        if threading.current_thread() is threading.main_thread():  # Python sets no handlers elsewhere
            self._handlers = {which: signal.signal(which, self._receive) for which in (signal.SIGTERM, signal.SIGINT)}
            self._unraisable_hook, sys.unraisablehook = sys.unraisablehook, self._report_unraisable
            StopSignals._active = self
        return self

    def __exit__(self, *exception) -> None:
        for which, handler in self._handlers.items():
            signal.signal(which, handler)
        if self._handlers:
            sys.unraisablehook = self._unraisable_hook
            StopSignals._active = None

    @contextlib.contextmanager
    def deferred(self) -> Generator[None]:
        """Lets the block end before a signal takes effect, and raises `Interrupted` after it."""
        self.raise_if_received()
        self._is_deferred = True
        try:
            yield
        finally:
            self._is_deferred = False
        self.raise_if_received()

    def raise_if_received(self) -> None:
        """Raises `Interrupted` if a signal has arrived and the block that is running does not defer it."""
        if self.received and not self._is_deferred:
            raise Interrupted(self.received)

    def _receive(self, signum: int, frame: object) -> None:
        now = time.monotonic()
        is_second = signum == signal.SIGINT and self.received and now - self._received_at >= _SECOND_PRESS
        if self._is_deferred and not is_second:
            if not self.received:
                logger.info(
                    "%s: saving a checkpoint at the end of this step (a second Ctrl-C ends at once, without one)",
                    signal.Signals(signum).name,
                )
                self._received_at = now
            self.received = signum
            return
        self.received = signum
        raise Interrupted(signum)

    def _report_unraisable(self, unraisable: Any) -> None:
        # Raised inside a finaliser: the next call of `raise_if_stopped` raises it again.
        if not isinstance(unraisable.exc_value, Interrupted):
            self._unraisable_hook(unraisable)


def raise_if_stopped() -> None:
    """Raises `Interrupted` if a signal has arrived and was lost in a finaliser; for long loops, between two items."""
    if StopSignals._active is not None and threading.current_thread() is threading.main_thread():
        StopSignals._active.raise_if_received()


@contextlib.contextmanager
def ending_at_once(command: str) -> Generator[None]:
    """Ends the process with one sentence and exit code 130 or 143 when a signal arrives.

    It is meant for imports, during which nothing can be lost. An exception would be shown with a library's traceback,
    or the library would take it for a missing dependency.

    Args:
        command: The name that the sentence begins with.
    """

    def end(signum: int, frame: object) -> None:
        os.write(sys.__stderr__.fileno() if sys.__stderr__ else 2, f"{command}: interrupted\n".encode())
        os._exit(128 + signum)

    handlers: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        handlers = {which: signal.signal(which, end) for which in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for which, handler in handlers.items():
            signal.signal(which, handler)

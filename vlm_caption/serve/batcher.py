"""Gathers what waits into batches, which one thread works off."""

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

logger = logging.getLogger(__name__)

# Takes items and returns a result, or an exception, for each. Works that are equal are done together.
Work = Callable[[Sequence[Any]], Sequence[Any]]


class ServerBusyError(RuntimeError):
    """Too much waits already.

    Attributes:
        retry_after: The seconds after which it is worth another try.
    """

    def __init__(self, retry_after: int) -> None:
        super().__init__(f"Too many requests wait: try again in {retry_after} s.")
        self.retry_after = retry_after


class ServerClosedError(RuntimeError):
    """The server is ending."""

    def __init__(self) -> None:
        super().__init__("The server is ending: try again when it runs again.")


@dataclass
class _Job:
    work: Work
    item: Any
    future: Future = field(default_factory=Future)


class Batcher:
    """Works off jobs in a thread of its own: the one that has waited longest, and with it those of equal work.

    It never waits for a batch to fill. While one runs, others gather.

    Args:
        batch_size: The most jobs at a time.
        max_waiting: The most jobs that wait.
    """

    def __init__(self, batch_size: int, max_waiting: int) -> None:
        self._batch_size, self._max_waiting = batch_size, max_waiting
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._seconds = 1.0  # of the last batch
        self._thread = threading.Thread(target=self._run, name="batcher", daemon=True)
        self._thread.start()

    def submit(self, work: Work, item: Any) -> Future:
        """Adds a job, and returns the future of its result. A future that is cancelled leaves the queue.

        Args:
            work: Gets a list of items and returns a list of results. A result that is an exception is raised by the
                item's future; one that is raised is raised by the futures of the whole batch.
            item: What it works on.

        Raises:
            ServerBusyError: Too many jobs wait.
            ServerClosedError: `close` has been called.
        """
        job = _Job(work, item)
        with self._changed:
            if self._is_closed:
                raise ServerClosedError
            if len(self._waiting) >= self._max_waiting:
                self._waiting = deque(job for job in self._waiting if not job.future.cancelled())
            if len(self._waiting) >= self._max_waiting:
                raise ServerBusyError(math.ceil(self._seconds * (1 + len(self._waiting) / self._batch_size)))
            self._waiting.append(job)
            self._changed.notify()
        return job.future

    def close(self) -> None:
        """Refuses what waits and whatever comes. The batch that runs gets its results."""
        with self._changed:
            self._is_closed = True
            refused, self._waiting = self._waiting, deque()
            self._changed.notify()
        for job in refused:
            if job.future.set_running_or_notify_cancel():
                job.future.set_exception(ServerClosedError())

    def join(self, timeout: float | None = None) -> None:
        """Waits for the batch that runs, after `close`; at most that many seconds."""
        self._thread.join(timeout)

    def _run(self) -> None:
        while batch := self._next():
            start = time.monotonic()
            _work_off(batch)
            self._seconds = time.monotonic() - start

    def _next(self) -> list[_Job]:
        """Waits for jobs, and takes a batch of them; an empty one when the batcher is closed."""
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closed)
                if self._is_closed:
                    return []
                work = self._waiting[0].work
                chosen = [job for job in self._waiting if job.work == work][: self._batch_size]
                left = set(map(id, chosen))
                self._waiting = deque(job for job in self._waiting if id(job) not in left)
            if batch := [job for job in chosen if job.future.set_running_or_notify_cancel()]:
                return batch


def _work_off(batch: Sequence[_Job]) -> None:
    try:
        results = batch[0].work([job.item for job in batch])
        pairs = [*zip(batch, results, strict=True)]
    except Exception as error:  # whoever waits gets it, and the thread goes on
        pairs = [(job, error) for job in batch]
    except BaseException as error:  # a panic of a library in Rust is no Exception
        pairs = [(job, RuntimeError(f"{type(error).__name__}: {error}")) for job in batch]
    for job, result in pairs:
        if isinstance(result, Exception):
            job.future.set_exception(result)
        else:
            job.future.set_result(result)

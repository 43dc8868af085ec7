"""Counts cores and processes, and maps a function over many items on several threads."""

import os
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from .interrupts import raise_if_stopped

Item = TypeVar("Item")
Result = TypeVar("Result")


def count_cores() -> int:
    """Returns the number of cores that this process may use, which may be fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def count_processes() -> int:
    """Returns how many processes `accelerate launch` or torchrun started; 1 without them."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def map_in_threads(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int | None = None
) -> Generator[Result]:
    """Yields `map(function, items)` in order, computed on several threads.

    Threads help because decoding, hashing and reading release the interpreter's lock. At most two items for each
    thread are taken in advance. Closing the generator waits for the threads.

    Args:
        function: The function. An error that it raises is raised here.
        items: The items, which are taken in the caller's thread.
        workers: The number of threads, by default one for each core.
    """
    workers = workers or count_cores()
    remaining = iter(items)
    with ThreadPoolExecutor(workers) as pool:
        waiting: deque[Future[Result]] = deque()
        try:
            for item in islice(remaining, 2 * workers):
                waiting.append(pool.submit(function, item))
            while waiting:
                raise_if_stopped()
                result = waiting.popleft().result()
                for item in islice(remaining, 1):
                    waiting.append(pool.submit(function, item))
                yield result
        finally:
            for future in waiting:
                future.cancel()

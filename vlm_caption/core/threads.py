"""Work on many pictures at once."""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

from .interrupts import raise_if_stopped

Item = TypeVar("Item")
Result = TypeVar("Result")


def map_in_threads(function: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
    """`map(function, items)` on a thread a core: Pillow's decoders, hashing and reading let others run meanwhile.

    The results come in order. Items are taken as they are needed, two a thread.

    Args:
        function: What it raises is raised here.
        items: Taken in the caller's thread.
    """
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
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

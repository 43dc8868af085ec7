"""What waits is gathered by equal work, refused when it is too much, and never lost."""

import threading
from concurrent.futures import CancelledError
from dataclasses import dataclass, field

import pytest

from vlm_caption.serve.batcher import Batcher, ServerBusyError, ServerClosedError


@dataclass(frozen=True)
class Recording:
    """Work that remembers its batches; its name alone makes it equal to another."""

    name: str
    batches: list = field(compare=False)
    gate: threading.Event = field(compare=False)
    entered: threading.Event = field(compare=False)

    def __call__(self, items):
        self.entered.set()
        assert self.gate.wait(10)
        self.batches.append((self.name, list(items)))
        return [ValueError(item) if item == "bad" else item.upper() for item in items]


@pytest.fixture
def works():
    """A function that makes works, which all wait for one gate."""
    batches: list = []
    gate, entered = threading.Event(), threading.Event()

    def make(name: str) -> Recording:
        return Recording(name, batches, gate, entered)

    make.batches, make.gate, make.entered = batches, gate, entered
    yield make
    gate.set()


def start(batcher: Batcher, works):
    """Submits a job that runs until the gate is opened."""
    future = batcher.submit(works("first"), "first")
    assert works.entered.wait(10)
    return future


def test_jobs_of_equal_work_are_done_together_in_order(works):
    batcher = Batcher(batch_size=3, max_waiting=10)
    start(batcher, works)
    futures = [batcher.submit(works(name), item) for name, item in zip("ababaaa", "stuvwxy", strict=True)]
    works.gate.set()
    assert [future.result(10) for future in futures] == [*"STUVWXY"]
    assert works.batches[1:] == [("a", ["s", "u", "w"]), ("b", ["t", "v"]), ("a", ["x", "y"])]


def test_a_job_that_fails_does_not_fail_its_batch(works):
    batcher = Batcher(8, 10)
    start(batcher, works)
    good, bad = batcher.submit(works("a"), "good"), batcher.submit(works("a"), "bad")
    works.gate.set()
    assert good.result(10) == "GOOD"
    with pytest.raises(ValueError, match="bad"):
        bad.result(10)


def test_work_that_raises_fails_its_batch_and_the_thread_goes_on(works):
    def fail(items):
        raise RuntimeError("broken")

    batcher = Batcher(8, 10)
    with pytest.raises(RuntimeError, match="broken"):
        batcher.submit(fail, "x").result(10)
    works.gate.set()
    assert batcher.submit(works("a"), "x").result(10) == "X"


class Panic(BaseException):
    """What a library in Rust raises."""


def test_the_thread_outlives_a_panic_and_a_result_too_few(works):
    def panic(items):
        raise Panic("broken")

    batcher = Batcher(8, 10)
    with pytest.raises(RuntimeError, match="Panic: broken"):
        batcher.submit(panic, "x").result(10)
    with pytest.raises(ValueError, match="zip"):
        batcher.submit(lambda items: [], "x").result(10)
    works.gate.set()
    assert batcher.submit(works("a"), "x").result(10) == "X"


def test_too_many_jobs_are_refused_with_a_time_to_come_back(works):
    batcher = Batcher(8, max_waiting=2)
    start(batcher, works)
    waiting = [batcher.submit(works("a"), "x") for _ in range(2)]
    with pytest.raises(ServerBusyError, match="try again in") as raised:
        batcher.submit(works("a"), "x")
    assert raised.value.retry_after >= 1
    waiting[0].cancel()  # makes room
    batcher.submit(works("a"), "y")


def test_a_cancelled_job_is_not_done(works):
    batcher = Batcher(8, 10)
    start(batcher, works)
    gone, left = batcher.submit(works("a"), "gone"), batcher.submit(works("b"), "left")
    gone.cancel()
    works.gate.set()
    assert left.result(10) == "LEFT"
    assert ("a", ["gone"]) not in works.batches
    with pytest.raises(CancelledError):
        gone.result()


def test_the_end_answers_what_runs_and_refuses_what_waits(works):
    batcher = Batcher(8, 10)
    running, waiting = start(batcher, works), batcher.submit(works("a"), "x")
    batcher.close()
    with pytest.raises(ServerClosedError):
        waiting.result(10)
    with pytest.raises(ServerClosedError):
        batcher.submit(works("a"), "x")
    works.gate.set()
    assert running.result(10) == "FIRST"
    batcher.join(10)

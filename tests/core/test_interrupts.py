"""Signals: none is lost, none is shown as a traceback, and work that must end is let end."""

import os
import signal
import subprocess
import sys

import pytest

from vlm_caption.core import interrupts
from vlm_caption.core.console import progress
from vlm_caption.core.interrupts import Interrupted, StopSignals, raise_if_stopped


class Finalised:
    """Its finaliser is where a signal arrives."""

    def __del__(self):
        signal.raise_signal(signal.SIGTERM)


def test_a_signal_raises_where_the_program_is_and_the_handlers_come_back():
    before = signal.getsignal(signal.SIGTERM), sys.unraisablehook
    with pytest.raises(Interrupted) as caught, StopSignals():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.signum == signal.SIGTERM
    assert (signal.getsignal(signal.SIGTERM), sys.unraisablehook) == before
    raise_if_stopped()  # nothing is left of it


def test_a_signal_inside_a_finaliser_is_raised_by_the_next_loop_without_a_word(capfd):
    seen = []

    def work():
        Finalised()
        for item in progress(range(3)):
            seen.append(item)

    with pytest.raises(Interrupted), StopSignals():
        work()
    assert seen == []
    assert "Exception ignored" not in capfd.readouterr().err


def test_deferred_work_ends_first():
    done = []

    def work(signals):
        with signals.deferred():
            signal.raise_signal(signal.SIGINT)
            raise_if_stopped()
            done.append("step")
        done.append("more")

    with pytest.raises(Interrupted), StopSignals() as signals:
        work(signals)
    assert done == ["step"]


@pytest.mark.parametrize(("seconds", "ends"), [(0.2, ["step"]), (1.5, [])], ids=["a launcher's", "a person's"])
def test_a_second_ctrl_c_ends_deferred_work(monkeypatch, seconds, ends):
    times = iter([100.0, 100.0 + seconds])
    monkeypatch.setattr(interrupts.time, "monotonic", lambda: next(times))
    done = []

    def step():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        done.append("step")

    with pytest.raises(Interrupted), StopSignals() as signals, signals.deferred():
        step()
    assert done == ends


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_while_modules_are_imported_a_signal_ends_the_process_with_a_sentence(signum):
    code = """
import os, sys
from vlm_caption.core.interrupts import ending_at_once
with ending_at_once("train.py"):
    try:
        os.kill(os.getpid(), int(sys.argv[1]))
    except BaseException:
        print("a library took it for a missing dependency")
print("went on")
"""
    done = subprocess.run(
        [sys.executable, "-c", code, str(int(signum))], capture_output=True, text=True, timeout=100, env=os.environ
    )
    assert (done.returncode, done.stdout, done.stderr) == (128 + signum, "", "train.py: interrupted\n")

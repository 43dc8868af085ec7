"""A few hundred damaged data files, in a process of their own that a crash would end."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz_readers import case, check, main, originals


def test_damaged_data_files_do_no_harm():
    script = Path(__file__).with_name("fuzz_readers.py")
    path = os.pathsep.join([str(script.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), "--count", "300", "--seed", "0"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode(errors="replace")[-2000:]
    assert b"0 did harm" in done.stdout


@pytest.mark.parametrize("name", originals())
def test_the_files_are_good_before_they_are_damaged(name, monkeypatch):
    monkeypatch.setattr("fuzz_readers.case", lambda seed, number: (name, originals()[name][0]))
    assert check(0, 0) == (f"{name}: read", None)


def test_a_case_is_always_the_same():
    assert [case(3, number) for number in range(20)] == [case(3, number) for number in range(20)]
    assert [case(3, number) for number in range(20)] != [case(4, number) for number in range(20)]


def test_harm_is_noticed(monkeypatch, capsys):
    def harmful(name, folder, file):
        raise RecursionError("what a bug raises")

    monkeypatch.setattr("fuzz_readers.consume", harmful)
    assert main(["--count", "2"]) == 1
    assert "RecursionError: what a bug raises" in capsys.readouterr().out

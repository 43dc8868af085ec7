"""Three thousand damaged pictures, in a process of their own whose memory is theirs alone."""

import hashlib
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from fuzz_images import FORMATS, MUTATIONS, case, check, forget_peak, main

from vlm_caption.core.errors import ImageError
from vlm_caption.images.opening import open_image


def test_three_thousand_damaged_pictures_do_no_harm():
    script = Path(__file__).with_name("fuzz_images.py")
    path = os.pathsep.join([str(script.parents[2]), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, str(script), "--count", "3000", "--seed", "0"]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, capture_output=True, timeout=300)
    assert done.returncode == 0, done.stdout.decode() + done.stderr.decode(errors="replace")[-2000:]
    assert b"0 did harm" in done.stdout


def test_a_case_is_always_the_same():
    digest = hashlib.sha256(b"".join(case(3, number)[1] for number in range(60))).digest()
    assert hashlib.sha256(b"".join(case(3, number)[1] for number in range(60))).digest() == digest
    assert hashlib.sha256(b"".join(case(4, number)[1] for number in range(60))).digest() != digest


def test_the_cases_are_of_all_formats_and_all_kinds_of_damage():
    seen = Counter(word for number in range(300) for word in case(0, number)[0].replace("+", " ").split())
    assert all(seen[name] >= 20 for name in (*FORMATS, *(mutate.__name__ for mutate in MUTATIONS)))


@pytest.mark.parametrize(
    ("harm", "words"), [(RuntimeError("what a bug raises"), "RuntimeError"), (None, "mode RGBA"), (3.0, "after 3")]
)
def test_harm_is_noticed(harm, words, monkeypatch, capsys, tmp_path):
    def harmful(source):
        if isinstance(harm, Exception):
            raise harm
        if harm:
            clock[0] += harm
            raise ImageError("a picture", "too slow")
        return open_image(source).convert("RGBA")

    clock = [0.0]
    monkeypatch.setattr("fuzz_images.open_image", harmful)
    monkeypatch.setattr("fuzz_images.time.process_time", lambda: clock[0])
    assert main(["--count", "30", "--save", str(tmp_path)]) == 1
    assert words in capsys.readouterr().out
    assert any(tmp_path.iterdir())


def test_memory_is_noticed(monkeypatch):
    def greedy(source):
        assert len(b"x" * (200 << 20)) > 0  # written to, so that it is really taken
        raise ImageError("a picture", "no more")

    monkeypatch.setattr("fuzz_images.MAX_BYTES", 100 << 20)
    monkeypatch.setattr("fuzz_images.open_image", greedy)
    forget_peak()
    assert "GB" in (check(b"")[1] or "")

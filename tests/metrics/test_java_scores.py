"""METEOR and SPICE: never a crash, never a process left behind. A shell script stands in for Java."""

import json
import os
import stat
import time

import numpy as np
import pytest

from vlm_caption.metrics import ScorerMissingError, score
from vlm_caption.metrics.java_scores import combine_meteor, score_meteor, score_spice

CAPTIONS = ["a dog runs on the beach", "two people ride bikes"]
REFERENCES = [["a dog is running on the beach", "a brown dog runs on sand"], ["two people ride their bikes"]]

# The program's own counts and scores for "a dog runs on the beach" beside its references and for four other pairs.
COUNTS = [
    "6 7 3 4 2 2 3 3 0 0 0 0 0 0 0 0 1 0 0 1 2 6 6",
    "4 5 2 3 2 2 2 2 0 0 0 0 0 0 0 0 0 0 0 0 2 4 4",
    "3 7 1 3 2 2 1 1 0 0 0 0 0 0 0 0 0 0 0 0 2 3 3",
    "0 2 0 1 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0",
    "8 6 4 3 3 3 2 2 0 0 0 0 0 0 0 0 0 0 0 0 2 5 5",
]
EACH = [0.393376174249887, 0.43179178487893827, 0.22660483853454663, 0.0, 0.4369165739006062]


@pytest.fixture
def java(tmp_path, monkeypatch):
    """Puts a program in Java's place: a shell script, of which the process id is in `pid`."""
    pytest.importorskip("pycocoevalcap")
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    def install(script: str) -> None:
        program = tmp_path / "java"
        program.write_text(f"#!/bin/sh\necho $$ > {tmp_path / 'pid'}\n{script}\n")
        program.chmod(program.stat().st_mode | stat.S_IXUSR)

    return install


@pytest.fixture
def models(monkeypatch, tmp_path):
    """Makes SPICE's models seem to be there."""
    from pycocoevalcap.spice import spice

    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "stanford-corenlp-3.6.0-models.jar").touch()
    monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))


def assert_gone(folder):
    pid = int((folder / "pid").read_text())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


class TestMeteor:
    @pytest.mark.parametrize(
        ("script", "timeout", "reason"),
        [
            ("echo no memory for the heap >&2; exit 1", 60, "failed: no memory for the heap"),
            ("exit 0", 60, "failed: it said nothing"),
            ("while read line; do echo rubbish; done", 60, "failed: it said nothing"),
            ("exec sleep 60", 0.2, "took longer than 0.2 s"),
        ],
    )
    def test_that_cannot_be_had_gives_a_reason_and_leaves_nothing_behind(
        self, java, tmp_path, script, timeout, reason
    ):
        java(script)
        started = time.monotonic()
        with pytest.raises(ScorerMissingError, match=f"METEOR's Java program {reason}"):
            score_meteor(CAPTIONS, REFERENCES, timeout)
        assert time.monotonic() - started < 20
        assert_gone(tmp_path)

    def test_that_fails_leaves_the_other_metrics_alone(self, java):
        java("exit 1")
        scores = score(CAPTIONS, REFERENCES, ["rouge_l", "meteor"])
        assert list(scores.corpus) == ["rouge_l"]
        assert scores.not_computed == {"meteor": "METEOR's Java program failed: it said nothing"}

    def test_counts_make_the_scores(self):
        counts = np.array([[float(count) for count in line.split()] for line in COUNTS])
        assert combine_meteor(counts) == pytest.approx(EACH, abs=1e-12)

    def test_a_perfect_caption_has_the_score_one(self):
        perfect = np.array([6.0, 6, 3, 3, *[3] * 4, *[0] * 12, 0, 6, 6])
        assert combine_meteor(perfect) == pytest.approx(1)


class TestSpice:
    def test_reads_what_the_program_writes(self, java, models, tmp_path):
        scores = [{"image_id": 1, "scores": {"All": {"f": 0.5}}}, {"image_id": 0, "scores": {"All": {"f": 0.25}}}]
        (tmp_path / "answer").write_text(json.dumps(scores))
        java(f"cp {tmp_path / 'answer'} $6; cp $4 {tmp_path / 'asked'}")
        corpus, per_image = score_spice(CAPTIONS, REFERENCES, 60)
        assert (corpus, list(per_image)) == (0.375, [0.25, 0.5])
        asked = json.loads((tmp_path / "asked").read_text())
        assert asked[1] == {"image_id": 1, "test": CAPTIONS[1], "refs": REFERENCES[1]}

    @pytest.mark.parametrize(
        ("script", "timeout", "reason"),
        [
            ("echo oops >&2; exit 1", 60, "failed: oops"),
            ("exec sleep 60", 0.2, "took longer than 0.2 s"),
            ("exit 0", 60, "wrote no scores"),
        ],
    )
    def test_that_cannot_be_had_gives_a_reason(self, java, models, tmp_path, script, timeout, reason):
        java(script)
        with pytest.raises(ScorerMissingError, match=f"SPICE's Java program {reason}"):
            score_spice(CAPTIONS, REFERENCES, timeout)
        assert_gone(tmp_path)

    def test_never_fetches_its_models(self, java, monkeypatch, tmp_path):
        from pycocoevalcap.spice import spice

        monkeypatch.setattr(spice, "__file__", str(tmp_path / "spice.py"))
        java("exit 1")
        with pytest.raises(ScorerMissingError, match=r"needs the models of Stanford CoreNLP 3\.6\.0"):
            score_spice(CAPTIONS, REFERENCES, 60)
        assert not (tmp_path / "pid").exists()

"""METEOR and SPICE: never a crash, never a process left behind. A shell script stands in for Java."""

import json
import os
import shutil
import stat
import time

import pytest

from vlm_caption.metrics import ScorerMissingError, score
from vlm_caption.metrics.java_scores import METEOR_WORDS, score_meteor, score_spice

CAPTIONS = ["a dog runs on the beach", "two people ride bikes"]
REFERENCES = [["a dog is running on the beach", "a brown dog runs on sand"], ["two people ride their bikes"]]


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

    def test_texts_are_cut_so_that_one_long_caption_costs_no_other_score(self, java, tmp_path):
        java(f"""while read -r line; do
            echo "$line" >> {tmp_path / "asked"}
            case "$line" in EVAL*) echo 0.5; echo 0.25; echo 0.4;; *) echo 1 2 3;; esac
        done""")
        scores = score(["dog " * 20_000, "two people"], REFERENCES, ["meteor"])
        assert list(scores.per_image["meteor"]) == [0.5, 0.25]
        assert (tmp_path / "asked").read_text().splitlines()[0].count("dog") == METEOR_WORDS + 2
        assert scores.notes == ["METEOR counts the first 1,000 words of longer captions and references: 1 were cut."]

    @pytest.mark.java
    def test_of_twenty_thousand_matching_words_is_that_of_the_first_thousand(self):
        if shutil.which("java") is None:
            pytest.skip("there is no java on the PATH")
        scores = score([CAPTIONS[0], "a dog is running on the beach " * 3000], [REFERENCES[0]] * 2, ["meteor"])
        assert scores.not_computed == {}
        assert scores.per_image["meteor"][0] > 0.3 > scores.per_image["meteor"][1]


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

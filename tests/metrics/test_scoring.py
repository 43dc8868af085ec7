"""All metrics in one call: pinned values, published values, and reasons for what is missing."""

import shutil

import numpy as np
import pytest
from own_captions import CAPTIONS, EXPECTED, METEOR, REFERENCES

from vlm_caption.metrics import ngram_scores, pair_captions, read_references, read_results, score, scoring
from vlm_caption.metrics.ngram_scores import combine_bleu

WITHOUT_JAVA = ("bleu", "rouge_l", "cider")


@pytest.fixture
def no_java(monkeypatch):
    monkeypatch.setenv("PATH", "")


class TestScore:
    def test_gives_the_values_of_pycocoevalcap_without_java(self, no_java):
        scores = score(CAPTIONS, REFERENCES)
        assert scores.corpus == pytest.approx(EXPECTED, abs=1e-10)
        assert set(scores.not_computed) == {"meteor", "spice"}
        assert scores.not_computed["meteor"] == "METEOR needs java, and there is none on the PATH"

    def test_gives_a_value_for_every_image(self):
        scores = score(CAPTIONS, REFERENCES, WITHOUT_JAVA)
        assert all(values.shape == (len(CAPTIONS),) for values in scores.per_image.values())
        for name in ("rouge_l", "cider"):
            assert scores.per_image[name].mean() == pytest.approx(scores.corpus[name])
        assert scores.per_image["bleu_1"][1] == pytest.approx(np.exp(1 - 5 / 4))  # all 4 words right, 5 expected
        assert np.argmin(scores.per_image["cider"]) == 5  # the one that is caught in a loop

    def test_what_bleu_is_made_of_adds_up_to_it(self):
        scores = score(CAPTIONS, REFERENCES, ["bleu"])
        total = combine_bleu(scores.counts["bleu"].sum(axis=0))
        assert list(total) == pytest.approx([EXPECTED[f"bleu_{n}"] for n in range(1, 5)])
        each = combine_bleu(scores.counts["bleu"])
        assert each == pytest.approx(np.stack([scores.per_image[f"bleu_{n}"] for n in range(1, 5)], axis=1))

    def test_computes_what_is_asked_for_only(self):
        scores = score(CAPTIONS, REFERENCES, ["cider"])
        assert (list(scores.corpus), scores.not_computed) == (["cider"], {})

    def test_looks_past_case_and_punctuation(self):
        changed = [f"{caption.upper().rstrip('.')} !" for caption in CAPTIONS]
        scores = score(changed, REFERENCES, WITHOUT_JAVA)
        assert scores.corpus == pytest.approx(EXPECTED, abs=1e-10)

    def test_says_that_cider_of_one_image_is_always_zero(self):
        scores = score(CAPTIONS[:1], REFERENCES[:1], ["cider"])
        assert scores.corpus == {"cider": 0}
        assert scores.notes[0].startswith("CIDEr of a single image is always 0")
        assert score(CAPTIONS[:2], REFERENCES[:2], ["cider"]).notes == []

    def test_of_empty_captions_is_zero(self):
        scores = score([""] * 3, REFERENCES[:3], WITHOUT_JAVA)
        assert list(scores.corpus.values()) == pytest.approx([0] * 6, abs=1e-6)

    def test_says_that_pycocoevalcap_is_missing(self, monkeypatch):
        monkeypatch.setattr(scoring.importlib.util, "find_spec", lambda name: None)
        scores = score(CAPTIONS, REFERENCES, ["bleu", "cider"])
        assert scores.corpus == {}
        assert scores.not_computed["bleu_4"] == "bleu needs pycocoevalcap: pip install 'vlm-caption[metrics]'"
        assert set(scores.not_computed) == {"bleu_1", "bleu_2", "bleu_3", "bleu_4", "cider"}

    @pytest.mark.parametrize(
        ("captions", "references", "metrics", "complaint"),
        [
            ([], [], ["bleu"], "no captions"),
            (["a", "b"], [["a"]], ["bleu"], "2 captions, but references for 1 images"),
            (["a", "b"], [["a"], []], ["bleu"], "1 of 2 images have no reference, first: number 1"),
            (["a"], [["a"]], ["blue"], "unknown metric 'blue': choose of bleu, rouge_l"),
        ],
    )
    def test_refuses_what_cannot_be_scored(self, captions, references, metrics, complaint):
        with pytest.raises(ValueError, match=complaint):
            score(captions, references, metrics)


class TestTwoProcesses:
    @pytest.fixture(autouse=True)
    def started(self, monkeypatch):
        """The processes that were started; any text is long enough."""
        started = []

        class Process(ngram_scores.CiderProcess):
            def __init__(self):
                super().__init__()
                started.append(self._process)

        monkeypatch.setattr(scoring, "CiderProcess", Process)
        monkeypatch.setattr(scoring, "_REFERENCES_FOR_TWO_PROCESSES", 1)
        monkeypatch.setattr(scoring, "count_cores", lambda: 2)
        return started

    def test_give_the_same_bits_as_one(self, started, monkeypatch):
        two = score(CAPTIONS, REFERENCES, WITHOUT_JAVA)
        assert [process.returncode for process in started] == [0]
        monkeypatch.setattr(scoring, "_REFERENCES_FOR_TWO_PROCESSES", 1000)
        one = score(CAPTIONS, REFERENCES, WITHOUT_JAVA)
        assert len(started) == 1
        assert two.corpus == one.corpus
        for name, values in one.per_image.items():
            assert two.per_image[name].dtype == values.dtype
            assert np.array_equal(two.per_image[name], values)

    def test_are_one_where_there_is_nothing_to_share(self, started, monkeypatch):
        score(CAPTIONS, REFERENCES, ["cider"])
        score(CAPTIONS, REFERENCES, ["bleu", "rouge_l"])
        monkeypatch.setattr(scoring, "count_cores", lambda: 1)
        score(CAPTIONS, REFERENCES, WITHOUT_JAVA)
        assert started == []

    @pytest.mark.parametrize("before", ["begin", "result"])
    def test_lose_nothing_when_one_is_killed(self, started, monkeypatch, before):
        step = getattr(ngram_scores.CiderProcess, before)

        def kill_first(process, *arguments):
            process._process.kill()
            process._process.wait()
            return step(process, *arguments)

        monkeypatch.setattr(scoring.CiderProcess, before, kill_first)
        scores = score(CAPTIONS * 80, REFERENCES * 80, ["bleu", "cider"])  # more than a pipe holds
        assert started[0].returncode < 0
        assert np.array_equal(scores.per_image["cider"], score_cider_here(scores))

    def test_leave_none_behind_when_scoring_fails(self, started, monkeypatch):
        monkeypatch.setattr(ngram_scores, "score_bleu", lambda *arguments: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            score(CAPTIONS, REFERENCES, WITHOUT_JAVA)
        assert started[0].returncode is not None


def score_cider_here(scores):
    return ngram_scores.score_cider(scores.caption_tokens, scores.reference_tokens)


@pytest.mark.java
class TestWithJava:
    @pytest.fixture(autouse=True)
    def java(self):
        if shutil.which("java") is None:
            pytest.skip("there is no java on the PATH")

    def test_meteor_is_that_of_pycocoevalcap(self):
        scores = score(CAPTIONS, REFERENCES, ["meteor"])
        assert scores.corpus == pytest.approx({"meteor": METEOR}, abs=1e-10)
        assert scores.not_computed == {}


# × 100, as papers print them.
TABLE = {
    "bleu_1": 56.8203,
    "bleu_2": 35.7640,
    "bleu_3": 21.4166,
    "bleu_4": 12.8778,
    "meteor": 17.3621,
    "rouge_l": 39.8795,
    "cider": 49.2887,
}


@pytest.mark.magic
class TestPublished:
    """The table that MAGIC's authors published, to four decimals; METEOR where there is java."""

    @pytest.fixture
    def pairs(self, magic_dir):
        references = read_references(magic_dir / "magic_mscoco_references.json")
        return pair_captions(read_results(magic_dir / "magic_mscoco_results.json"), references)

    def test_scores_are_reproduced(self, pairs):
        scores = score(pairs.captions, pairs.references, WITHOUT_JAVA)
        found = {name: round(100 * value, 4) for name, value in scores.corpus.items()}
        assert found == {name: value for name, value in TABLE.items() if name != "meteor"}
        length, reference_length = scores.counts["bleu"].sum(axis=0)[:2]
        assert (length, reference_length) == (47153, 47168)
        assert list(scores.counts["bleu"].sum(axis=0)[6:]) == [26801, 9496, 2857, 902]

    @pytest.mark.java
    def test_meteor_is_reproduced(self, pairs):
        scores = score(pairs.captions, pairs.references, ["meteor"])
        if "meteor" in scores.not_computed:
            pytest.skip(scores.not_computed["meteor"])
        assert round(100 * scores.corpus["meteor"], 4) == TABLE["meteor"]


def test_references_without_a_word_give_a_cider_of_nought():
    """Emoji and punctuation have no tokens."""
    assert ngram_scores.score_cider(["a dog", ""], [["", ""], [""]]).tolist() == [0.0, 0.0]

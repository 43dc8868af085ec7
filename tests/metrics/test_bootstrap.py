"""Intervals and comparisons by resampling images."""

from dataclasses import replace

import numpy as np
import pytest
from own_captions import CAPTIONS, REFERENCES

from vlm_caption.metrics import Scores, compare, confidence_intervals, mean_interval, score
from vlm_caption.metrics import bootstrap as bootstrap_module

METRICS = ("bleu", "rouge_l", "cider")
WORSE = ["A dog", "people", "a man's cat on it", "A train", "A child", "A bowl bowl bowl"]


@pytest.fixture(scope="module")
def scores() -> Scores:
    return score(CAPTIONS, REFERENCES, METRICS)


def numbers(values) -> Scores:
    """Scores with one metric, of which the corpus value is a mean."""
    values = np.asarray(values, dtype=float)
    texts = [str(index) for index in range(len(values))]
    return Scores({"cider": values.mean()}, {"cider": values}, {}, texts, [[text] for text in texts])


class TestConfidenceIntervals:
    def test_hold_every_corpus_value(self, scores):
        intervals = confidence_intervals(scores)
        assert set(intervals) == set(scores.corpus)
        assert all(low <= scores.corpus[name] <= high for name, (low, high) in intervals.items())

    def test_are_those_of_scoring_each_resample(self, scores):
        intervals = confidence_intervals(scores, resamples=200, seed=3)
        drawn = np.random.default_rng(3).integers(len(CAPTIONS), size=(200, len(CAPTIONS)))
        captions, references = scores.caption_tokens, scores.reference_tokens
        values = []
        for rows in drawn:
            again = score([captions[row] for row in rows], [references[row] for row in rows], ["bleu", "rouge_l"])
            values.append([again.corpus["bleu_4"], again.corpus["rouge_l"]])
        low, high = np.quantile(values, [0.025, 0.975], axis=0)
        assert intervals["bleu_4"] == pytest.approx((low[0], high[0]))
        assert intervals["rouge_l"] == pytest.approx((low[1], high[1]))

    def test_are_the_same_with_the_same_seed_and_in_any_portions(self, scores, monkeypatch):
        whole = confidence_intervals(scores, resamples=100, seed=1)
        assert confidence_intervals(scores, resamples=100, seed=1) == whole
        assert confidence_intervals(scores, resamples=100, seed=2) != whole
        monkeypatch.setattr(bootstrap_module, "_DRAWS_AT_A_TIME", 7 * len(CAPTIONS))
        assert confidence_intervals(scores, resamples=100, seed=1) == whole

    def test_of_a_mean_are_those_of_theory(self):
        values = np.random.default_rng(0).normal(size=400)
        low, high = confidence_intervals(numbers(values), resamples=4000)["cider"]
        width = 1.96 * values.std() / 20
        assert (low, high) == pytest.approx((values.mean() - width, values.mean() + width), abs=0.01)
        assert mean_interval(values, resamples=4000) == pytest.approx((low, high))

    def test_draw_captions_of_one_image_together(self):
        values = np.random.default_rng(0).normal(size=50)
        once = confidence_intervals(numbers(values))["cider"]
        repeated, images = np.repeat(values, 20), np.repeat(np.arange(50), 20)
        assert confidence_intervals(numbers(repeated), groups=images)["cider"] == pytest.approx(once)
        assert mean_interval(repeated, groups=images) == pytest.approx(once)
        worse = compare(numbers(repeated), numbers(repeated * 0), groups=images)["cider"]
        assert worse[1:3] == pytest.approx(once)
        low, high = mean_interval(repeated)
        assert high - low < 0.5 * (once.high - once.low)

    def test_of_images_with_unlike_numbers_of_captions_are_of_the_mean_caption(self):
        low, high = mean_interval(np.array([1.0, 1.0, 1.0, 0.0]), groups="aaab")
        assert (low, high) == (0, 1)
        assert mean_interval(np.array([1.0, 1.0, 1.0, 0.0]), groups="aaab", confidence=0.0) == pytest.approx(
            (0.75, 0.75)
        )

    def test_of_nothing_computed_are_none(self):
        nothing = Scores({}, {}, {"cider": "no scorer"}, ["a"], [["a"]])
        assert confidence_intervals(nothing) == compare(nothing, nothing) == {}

    def test_are_not_given_for_meteor(self, scores):
        with_meteor = replace(scores, corpus=scores.corpus | {"meteor": 0.2})
        assert set(confidence_intervals(with_meteor)) == set(compare(with_meteor, with_meteor)) == set(scores.corpus)

    def test_narrow_with_confidence(self, scores):
        wide, narrow = (confidence_intervals(scores, confidence=share)["cider"] for share in (0.99, 0.5))
        assert wide.low < narrow.low < narrow.high < wide.high


class TestCompare:
    def test_finds_the_better_system(self, scores):
        worse = score(WORSE, REFERENCES, METRICS)
        for name, difference in compare(scores, worse).items():
            assert difference.difference == pytest.approx(scores.corpus[name] - worse.corpus[name])
            assert difference.low <= difference.difference <= difference.high
        assert compare(scores, worse)["bleu_1"].other_sign < 0.05
        back = compare(worse, scores)["bleu_1"]
        assert back.difference < 0
        assert back.other_sign < 0.05

    def test_of_a_system_with_itself_is_nothing(self, scores):
        assert compare(scores, scores)["cider"] == (0, 0, 0, 1)

    def test_pairing_sees_small_differences(self):
        values = np.random.default_rng(0).normal(size=400)
        better = numbers(values + 0.1)
        difference = compare(better, numbers(values))["cider"]
        assert difference == pytest.approx((0.1, 0.1, 0.1, 0))

    def test_chance_is_not_taken_for_a_difference(self):
        first, second = np.random.default_rng(1).normal(size=(2, 400))
        difference = compare(numbers(first), numbers(second))["cider"]
        assert difference.low < 0 < difference.high
        assert difference.other_sign > 0.05

    def test_compares_what_both_have(self, scores):
        assert list(compare(scores, score(WORSE, REFERENCES, ["cider"]))) == ["cider"]

    def test_refuses_other_references(self, scores):
        other = score(CAPTIONS[::-1], REFERENCES[::-1], METRICS)
        with pytest.raises(ValueError, match="not scored on the same references"):
            compare(scores, other)

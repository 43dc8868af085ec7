"""Calibration error, AUROC and risk–coverage of numbers that can be computed by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_caption.metrics.reliability import (
    auroc,
    calibration_error,
    chance_error,
    reliability_bins,
    reliability_intervals,
    risk_coverage,
)

CAPTIONS = st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=40)


def columns(pairs):
    confidences, is_right = zip(*pairs, strict=True)
    return np.array(confidences), np.array(is_right)


def test_the_calibration_error_is_the_mean_difference_of_the_bins():
    confidences = np.array([0.2, 0.2, 0.2, 0.2, 0.9, 0.9, 0.9, 0.9])
    is_right = np.array([0, 0, 0, 1, 1, 1, 0, 0], dtype=bool)
    # |0.2 − 0.25| and |0.9 − 0.5|, half of the captions each
    assert calibration_error(confidences, is_right, bins=2) == pytest.approx((0.05 + 0.4) / 2)
    assert [(part.confidence, part.right, part.count) for part in reliability_bins(confidences, is_right, 2)] == [
        (pytest.approx(0.2), 0.25, 4),
        (pytest.approx(0.9), 0.5, 4),
    ]


def test_right_confidences_have_the_calibration_error_of_chance():
    generator = np.random.default_rng(0)
    confidences = generator.random(2000)
    is_right = generator.random(2000) < confidences
    assert calibration_error(confidences, is_right) == pytest.approx(
        chance_error(confidences, resamples=50), abs=0.015
    )
    assert calibration_error(confidences**3, is_right) > 0.2


def test_ties_count_half_in_the_auroc():
    assert auroc(np.array([0.1, 0.5, 0.5, 0.9]), np.array([False, False, True, True])) == (1 + 1 + 1 + 0.5) / 4
    assert auroc(np.array([0.1, 0.9]), np.array([True, False])) == 0
    assert math.isnan(auroc(np.array([0.1, 0.9]), np.array([True, True])))


def test_risk_is_the_share_of_errors_among_the_most_confident():
    errors = np.array([0, 1, 0, 1])
    assert risk_coverage(np.array([0.9, 0.8, 0.7, 0.6]), errors).tolist() == [0, 0.5, 1 / 3, 0.5]


@given(CAPTIONS)
def test_all_values_are_shares(pairs):
    confidences, is_right = columns(pairs)
    assert 0 <= calibration_error(confidences, is_right) <= 1
    assert math.isnan(area := auroc(confidences, is_right)) or 0 <= area <= 1
    assert risk_coverage(confidences, ~is_right)[-1] == pytest.approx(1 - is_right.mean())
    assert sum(part.count for part in reliability_bins(confidences, is_right)) == len(pairs)


def test_intervals_contain_the_area_and_the_share():
    generator = np.random.default_rng(1)
    confidences = generator.random(300)
    is_right = generator.random(300) < confidences
    ends = reliability_intervals(confidences, is_right, resamples=100)
    assert ends["auroc"].low < auroc(confidences, is_right) < ends["auroc"].high
    assert ends["right"].low < is_right.mean() < ends["right"].high

"""Intervals that fit the length of a run."""

import pytest

from vlm_caption.config.sections import TrainingSection
from vlm_caption.training.intervals import Intervals, choose_intervals


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        (5, Intervals(warmup=0, logging=1, evaluation=10, saving=10)),
        (43, Intervals(warmup=4, logging=1, evaluation=10, saving=10)),
        (500, Intervals(warmup=50, logging=10, evaluation=50, saving=50)),
        (100_000, Intervals(warmup=100, logging=25, evaluation=250, saving=250)),
    ],
)
def test_they_are_shares_of_the_run_within_bounds(steps, expected):
    assert choose_intervals(TrainingSection(), steps) == expected


def test_numbers_that_are_given_stay():
    given = TrainingSection(warmup_steps=0, logging_steps=7, eval_steps=9, save_steps=11)
    assert choose_intervals(given, 43) == Intervals(warmup=0, logging=7, evaluation=9, saving=11)

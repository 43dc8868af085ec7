"""How far confidences can be trusted: calibration error, discrimination, and what is gained by leaving captions out.

All functions take the confidences of N captions, float [N] in [0, 1], and whether each caption is right, bool [N].
"""

from typing import NamedTuple

import numpy as np

from .bootstrap import Interval, mean_interval

BINS = 10


class Bin(NamedTuple):
    """Captions of similar confidence.

    Attributes:
        confidence: Their mean confidence.
        right: The share of them that are right.
        count: How many there are.
    """

    confidence: float
    right: float
    count: int


def reliability_bins(confidences: np.ndarray, is_right: np.ndarray, bins: int = BINS) -> list[Bin]:
    """Returns captions in bins of equal counts, in order of their confidence; fewer if there are fewer captions."""
    order = np.argsort(confidences, kind="stable")
    parts = [part for part in np.array_split(order, bins) if len(part)]
    return [Bin(float(confidences[part].mean()), float(is_right[part].mean()), len(part)) for part in parts]


def calibration_error(confidences: np.ndarray, is_right: np.ndarray, bins: int = BINS) -> float:
    """Returns the expected calibration error: by how much confidence and share of right captions differ in a bin.

    It is the mean over captions of their bin's absolute difference (Naeini et al., "Obtaining Well Calibrated
    Probabilities Using Bayesian Binning", AAAI 2015), in bins of equal counts (Nguyen and O'Connor, "Posterior
    Calibration and Exploratory Analysis for Natural Language Processing Models", EMNLP 2015). Chance alone makes it
    more than 0; see `chance_error`.
    """
    parts = reliability_bins(confidences, is_right, bins)
    return sum(part.count * abs(part.confidence - part.right) for part in parts) / len(confidences)


def chance_error(confidences: np.ndarray, bins: int = BINS, resamples: int = 1000, seed: int = 0) -> float:
    """Returns the mean calibration error that perfect confidences of so many captions would have by chance."""
    generator = np.random.default_rng(seed)
    drawn = generator.random((resamples, len(confidences))) < confidences
    return float(np.mean([calibration_error(confidences, row, bins) for row in drawn]))


def auroc(confidences: np.ndarray, is_right: np.ndarray) -> float:
    """Returns the probability that a right caption has a higher confidence than a wrong one, ties counted half.

    It is the area under the ROC curve (Hanley and McNeil, Radiology 1982); NaN if all or none of the captions are
    right.
    """
    right = np.asarray(is_right, dtype=bool)
    num_right, num_wrong = int(right.sum()), int((~right).sum())
    if not num_right or not num_wrong:
        return float("nan")
    _, inverse, counts = np.unique(confidences, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]  # the mean rank of ties, from 1
    return float((ranks[right].sum() - num_right * (num_right + 1) / 2) / (num_right * num_wrong))


def risk_coverage(confidences: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns the mean value of the 1, 2, … N most confident captions, float [N].

    With errors (1 for a wrong caption) as values, this is the risk–coverage curve of selective prediction (El-Yaniv
    and Wiener, "On the Foundations of Noise-free Selective Classification", JMLR 2010).

    Args:
        confidences: float [N].
        values: The value of each caption, float [N].
    """
    order = np.argsort(-confidences, kind="stable")
    return np.cumsum(np.asarray(values, dtype=np.float64)[order]) / np.arange(1, len(order) + 1)


def reliability_intervals(
    confidences: np.ndarray, is_right: np.ndarray, resamples: int = 1000, seed: int = 0
) -> dict[str, Interval]:
    """Returns 95 % bootstrap intervals of `right` (the share of right captions), `ece` and `auroc`.

    Args:
        confidences, is_right: See this module.
        resamples: How often the captions are drawn with replacement.
        seed: Of the draws.
    """
    generator = np.random.default_rng(seed)
    errors, areas = [], []
    for _ in range(resamples):
        rows = generator.integers(len(confidences), size=len(confidences))
        errors.append(calibration_error(confidences[rows], is_right[rows]))
        areas.append(auroc(confidences[rows], is_right[rows]))
    ends = {"ece": errors, "auroc": [area for area in areas if not np.isnan(area)] or [float("nan")]}
    found = {name: Interval(*map(float, np.quantile(values, [0.025, 0.975]))) for name, values in ends.items()}
    return {"right": mean_interval(np.asarray(is_right, dtype=np.float64), resamples, seed=seed), **found}

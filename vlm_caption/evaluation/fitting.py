"""Fits what a confidence is made of: two logistic regressions, and where the features of known pictures lie."""

import numpy as np
import torch
from torch import nn

from ..captioning.confidence import KnownPictures, Regression, standardise

# The strength of the penalty on squared weights: that of a normal prior, seen once by all captions together. It keeps
# weights finite where the two sides can be separated.
_PENALTY = 1e-3

_TINY = 1e-6


def fit_regression(numbers: np.ndarray, is_true: np.ndarray, balanced: bool = False) -> Regression:
    """Fits a logistic regression by maximum likelihood, with a slight penalty on its weights.

    Args:
        numbers: float64 [R, K].
        is_true: bool [R].
        balanced: Whether the rows that are true and those that are not weigh the same in sum, however many they are.
    """
    mean, scale = _mean_and_deviation(numbers)
    places, targets = torch.from_numpy(standardise(numbers, mean, scale)), torch.from_numpy(is_true).double()
    share = targets.mean()
    row_weights = torch.where(targets > 0, 0.5 / share, 0.5 / (1 - share)) if balanced else torch.ones_like(targets)
    parameters = torch.zeros(numbers.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([parameters], max_iter=200, tolerance_grad=1e-9, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimizer.zero_grad()
        weights, bias = parameters[:-1], parameters[-1]
        value = nn.functional.binary_cross_entropy_with_logits(places @ weights + bias, targets, row_weights)
        value = value + _PENALTY / 2 * weights.square().sum()
        value.backward()
        return value

    with torch.enable_grad():
        optimizer.step(loss)
    *weights, bias = parameters.tolist()
    return Regression(tuple(mean.tolist()), tuple(scale.tolist()), tuple(weights), bias)


def fit_known_pictures(pooled: np.ndarray) -> KnownPictures:
    """Returns where the features of pictures lie, from their pooled features, float64 [I, D]."""
    return KnownPictures(*_mean_and_deviation(pooled))


def _mean_and_deviation(numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return numbers.mean(axis=0), np.maximum(numbers.std(axis=0, ddof=1), _TINY)

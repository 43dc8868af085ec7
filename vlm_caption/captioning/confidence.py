"""The probability that a caption is right, which `scripts/calibrate.py` fits and saves beside a checkpoint.

A mean log-probability does not tell whether a caption is true: a language model is as sure of "A man is standing." for
a blank picture as for a photo. A confidence is the product of two logistic regressions (Platt, "Probabilistic Outputs
for Support Vector Machines", 1999): the probability that a caption of a picture of a known kind is right, and the
probability that the picture is of such a kind. The latter counts only below what 95 % of the known pictures have:
it lowers the confidence of odd pictures, and does not make those of all others too low. They look at these signals:

- the mean and the lowest log-probability of a caption's tokens;
- their gain over the log-probabilities without the picture, which says what the caption owes to the picture (pointwise
  mutual information; for captions, Xiao and Wang, "On Hallucination and Predictive Uncertainty", EACL 2021);
- the caption's length;
- how far the picture's features are from the mean of those trained on, in standard deviations: the Mahalanobis
  distance with a diagonal covariance (Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution
  Samples and Adversarial Attacks", NeurIPS 2018).

Needs no torch, for exported captioners have confidences too.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np

from ..core.errors import CheckpointError
from ..core.files import CONFIDENCE_NAME, open_regular, write_text
from ..core.untrusted import load_json

VERSION = 2

# The columns of `caption_signals`, and what `KnownPictures.log_distances` returns.
CAPTION_SIGNALS = ("mean_log_prob", "min_log_prob", "mean_gain", "log_length")
SIGNALS = (*CAPTION_SIGNALS, "log_distance")

_MAX_BYTES = 64_000_000
_TINY = 1e-6

# Numbers further from the mean count as this many standard deviations: what was never seen is not extrapolated to.
_MOST_DEVIATIONS = 2.0


@dataclass(frozen=True)
class Regression:
    """A logistic regression on numbers that are standardised first, and cut at two standard deviations.

    Attributes:
        mean, scale: The mean and the standard deviation of each number.
        weights: The weight of each.
        bias: What is added.
    """

    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weights: tuple[float, ...]
    bias: float

    def probability(self, numbers: np.ndarray) -> np.ndarray:
        """Returns the probability of each row, float64 [R], for numbers float [R, K]."""
        places = standardise(numbers, np.array(self.mean), np.array(self.scale))
        return 0.5 + 0.5 * np.tanh((places @ np.array(self.weights) + self.bias) / 2)  # exp would overflow


def standardise(numbers: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Returns what a [`Regression`] weighs, float64 [R, K], of numbers float [R, K]."""
    return ((numbers - mean) / scale).clip(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)


@dataclass(frozen=True)
class Regressions:
    """What tells confidences from signals.

    Attributes:
        right: The regression on `SIGNALS` for "the caption is right", for pictures of a known kind.
        known: The regression on `SIGNALS` for "the picture is of a known kind".
        usual: The probability of a known kind from which on a picture counts as known.
    """

    right: Regression
    known: Regression
    usual: float

    def probabilities(self, signals: np.ndarray) -> np.ndarray:
        """Returns the confidence of captions, float64 [R], from their `SIGNALS`, float64 [R, 5]."""
        return self.right.probability(signals) * np.minimum(self.known.probability(signals) / self.usual, 1.0)


@dataclass(frozen=True)
class KnownPictures:
    """Where the features of the pictures trained on lie. It holds means over many pictures, and no single one.

    Attributes:
        mean, deviation: The mean and the standard deviation of each pooled feature, float64 [D].
    """

    mean: np.ndarray
    deviation: np.ndarray

    def log_distances(self, pooled: np.ndarray) -> np.ndarray:
        """Returns the signal `log_distance` of pictures, float64 [I], from their pooled features, float [I, D].

        It is the logarithm of the root mean square of the deviations from the mean.
        """
        places = (pooled - self.mean) / self.deviation
        return np.log(np.maximum(np.sqrt(np.square(places).mean(axis=1)), _TINY))


def caption_signals(log_probs: np.ndarray, prior: np.ndarray, is_caption: np.ndarray) -> np.ndarray:
    """Returns `CAPTION_SIGNALS` of captions, float64 [R, 4].

    Args:
        log_probs: The log-probability of each token, in nats, float [R, M]; 0 behind the captions' ends.
        prior: The same without the picture.
        is_caption: Which tokens belong to the captions, bool [R, M].
    """
    own, gain = log_probs.astype(np.float64), log_probs.astype(np.float64) - prior
    lengths = np.maximum(is_caption.sum(axis=1), 1)
    return np.stack(
        [own.sum(axis=1) / lengths, own.min(axis=1), gain.sum(axis=1) / lengths, np.log(lengths)],
        axis=1,
    )


@dataclass(frozen=True)
class Confidence:
    """Tells how probably captions are right; see this module.

    Attributes:
        regressions: What tells confidences from signals.
        pictures: The known pictures.
        weights: The fingerprint of the captioner's trained weights, for which this was fitted.
        fitted_on: What it was fitted on, in words and numbers.
        measured: How good it was, measured on pictures that it was not fitted on.
    """

    regressions: Regressions
    pictures: KnownPictures
    weights: str
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def measure(self, signals: np.ndarray, pooled: np.ndarray) -> list[float]:
        """Returns the confidence of captions. It depends only on the model, the picture, the prompt and the tokens.

        Args:
            signals: What [`caption_signals`] returned for them, float64 [R, 4].
            pooled: The pooled features of each caption's picture, float [R, D].
        """
        signals = np.column_stack([signals, self.pictures.log_distances(pooled)])
        return self.regressions.probabilities(signals).tolist()

    def save(self, folder: str | os.PathLike) -> Path:
        """Writes `confidence.json` to the folder of a checkpoint, and returns its path.

        Raises:
            OSError: The file cannot be written.
        """
        content = {
            "version": VERSION,
            "weights": self.weights,
            "fitted_on": dict(self.fitted_on),
            "measured": dict(self.measured),
            "signals": list(SIGNALS),
            "right": vars(self.regressions.right),
            "known": vars(self.regressions.known),
            "usual": self.regressions.usual,
            "pictures": {name: _rounded(values) for name, values in vars(self.pictures).items()},
        }
        path = Path(folder) / CONFIDENCE_NAME
        write_text(path, json.dumps(content, ensure_ascii=False, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike, feature_size: int | None = None) -> Self | None:
        """Reads `confidence.json` in the folder of a checkpoint; returns None if there is none.

        Args:
            folder: The folder.
            feature_size: The number of a picture's pooled features that it must be for; by default any.

        Raises:
            CheckpointError: The file is damaged, of another version, or for another model.
        """
        path = Path(folder) / CONFIDENCE_NAME
        try:
            with open_regular(path) as file:
                content = file.read(_MAX_BYTES + 1)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _damaged(path, error.strerror or str(error)) from error
        try:
            if len(content) > _MAX_BYTES:
                raise ValueError(f"it has more than {_MAX_BYTES:,} bytes")
            read = cls._parse(load_json(content, "its text", ValueError))
            size = len(read.pictures.mean)
            if feature_size not in (None, size):
                raise ValueError(f"it is for {size} features of a picture, and the model has {feature_size}")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            missing = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
            raise _damaged(path, missing) from error
        return read

    @classmethod
    def _parse(cls, content: Any) -> Self:
        if not isinstance(content, dict):
            raise ValueError("it holds no object")
        if content["version"] != VERSION:
            raise ValueError(f"its version is {content['version']!r}, and this program reads {VERSION}")
        if content["signals"] != list(SIGNALS):
            raise ValueError("it is for other signals")
        right, known = (_parse_regression(content[name]) for name in ("right", "known"))
        usual = _numbers(content["usual"])
        if usual.ndim or not 0 < usual <= 1:
            raise ValueError("the usual probability is not between 0 and 1")
        mean, deviation = (_numbers(content["pictures"][name]) for name in ("mean", "deviation"))
        if mean.ndim != 1 or mean.shape != deviation.shape or not len(mean):
            raise ValueError("its features of pictures do not fit together")
        if not (deviation > 0).all():
            raise ValueError("a standard deviation is not above 0")
        facts = [content["fitted_on"], content["measured"]]
        if not isinstance(content["weights"], str) or not all(isinstance(fact, dict) for fact in facts):
            raise ValueError("it does not say what it was fitted on")
        regressions = Regressions(right, known, usual.item())
        return cls(regressions, KnownPictures(mean, deviation), content["weights"], *facts)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be used ({reason}): fetch it again, make it with scripts/calibrate.py, or remove it and have "
        "no confidences."
    )


def _numbers(values: Any) -> np.ndarray:
    try:
        table = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError("it has something else where numbers belong") from error
    if not np.isfinite(table).all():
        raise ValueError("a number is not finite")
    return table


def _parse_regression(fields: Mapping[str, Any]) -> Regression:
    vectors = {name: _numbers(fields[name]) for name in ("mean", "scale", "weights")}
    if any(vector.shape != (len(SIGNALS),) for vector in vectors.values()):
        raise ValueError("a regression does not fit the signals")
    if not (vectors["scale"] > 0).all():
        raise ValueError("a standard deviation is not above 0")
    bias = _numbers(fields["bias"])
    return Regression(**{name: tuple(vector.tolist()) for name, vector in vectors.items()}, bias=bias.item())


def _rounded(values: np.ndarray) -> list[float]:
    """Returns numbers with five significant digits, which is far below the noise in features."""
    return [float(f"{value:.5g}") for value in values.tolist()]

"""The probability that a caption is right, which `scripts/calibrate.py` fits and saves beside a checkpoint.

A mean log-probability does not tell whether a caption is true: a language model is as sure of "A man is standing." for
a blank picture as for a photo. A confidence is the product of two logistic regressions (Platt, "Probabilistic Outputs
for Support Vector Machines", 1999): the probability that the picture is one of the kind that the captioner knows, and
the probability that a caption of such a picture is right. They look at these signals:

- the mean and the lowest log-probability of a caption's tokens;
- their gain over the log-probabilities without the picture, which says what the caption owes to the picture (pointwise
  mutual information; for captions, Xiao and Wang, "On Hallucination and Predictive Uncertainty", EACL 2021);
- the caption's length;
- how far the picture's features are from the mean of those trained on, in standard deviations: the Mahalanobis
  distance with a diagonal covariance (Lee et al., "A Simple Unified Framework for Detecting Out-of-Distribution
  Samples and Adversarial Attacks", NeurIPS 2018).
"""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import torch

from ..core.errors import CheckpointError
from ..core.files import open_regular, write_text
from ..core.untrusted import load_json
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.companions import CONFIDENCE_NAME
from ..towers.configuration import CaptionerConfig
from ..towers.processor import CaptionerProcessor
from .generation import Generation, token_log_probs, without_images

VERSION = 1

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

    def probability(self, numbers: torch.Tensor) -> torch.Tensor:
        """Returns the probability of each row, float64 [R], for numbers float [R, K]."""
        mean, scale, weights = (
            torch.tensor(values, dtype=torch.float64) for values in (self.mean, self.scale, self.weights)
        )
        return (standardise(numbers.double(), mean, scale) @ weights + self.bias).sigmoid()


def standardise(numbers: torch.Tensor, mean: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Returns what a [`Regression`] weighs, float64 [R, K], of numbers float64 [R, K]."""
    return ((numbers - mean) / scale).clamp(-_MOST_DEVIATIONS, _MOST_DEVIATIONS)


@dataclass(frozen=True)
class KnownPictures:
    """Where the features of the pictures trained on lie. It holds means over many pictures, and no single one.

    Attributes:
        mean, deviation: The mean and the standard deviation of each pooled feature, float64 [D].
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def log_distances(self, features: torch.Tensor) -> torch.Tensor:
        """Returns the signal `log_distance` of pictures, float64 [I, 1], from their features, float [I, N, D_vision].

        It is the logarithm of the root mean square, over pooled features, of the deviations from the mean.
        """
        places = (pool_features(features) - self.mean) / self.deviation
        return places.square().mean(dim=1, keepdim=True).sqrt().clamp_min(_TINY).log()


def pool_features(features: torch.Tensor) -> torch.Tensor:
    """Returns one vector for each picture: its first token, which may be the tower's pooled one, and their mean.

    Args:
        features: float [I, N, D_vision].

    Returns:
        float64 [I, 2 · D_vision], on the CPU; [I, D_vision] if N is 1.
    """
    features = features.detach().cpu().double()
    if features.shape[1] == 1:
        return features[:, 0]
    return torch.cat([features[:, 0], features.mean(dim=1)], dim=1)


def pooled_size(config: CaptionerConfig) -> int:
    """Returns how many numbers `pool_features` gives for a picture of a captioner with this config."""
    return config.vision_feature_size * (1 if config.vision_seq_length == 1 else 2)


def caption_signals(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    generation: Generation,
    log_probs: torch.Tensor,
) -> torch.Tensor:
    """Returns `CAPTION_SIGNALS` of captions, float64 [R, 4], on the CPU. This runs the language model once.

    Args:
        model: The model, in eval mode.
        processor: The model's processor.
        generation: The captions.
        log_probs: What `token_log_probs` returned for them.
    """
    prior = token_log_probs(model, without_images(model, processor, generation), None)
    is_caption = generation.is_caption.cpu()
    own, gain = log_probs.cpu().double(), (log_probs - prior).cpu().double()  # 0 behind the captions' ends
    lengths = is_caption.sum(dim=1).clamp_min(1)
    return torch.stack(
        [own.sum(dim=1) / lengths, own.min(dim=1).values, gain.sum(dim=1) / lengths, lengths.double().log()], dim=1
    )


@dataclass(frozen=True)
class Confidence:
    """Tells how probably captions are right; see this module.

    Attributes:
        right: The regression on `SIGNALS` for "the caption is right", for pictures of a known kind.
        known: The regression on `SIGNALS` for "the picture is of a known kind".
        pictures: The known pictures.
        weights: The fingerprint of the captioner's trained weights, for which this was fitted.
        fitted_on: What it was fitted on, in words and numbers.
        measured: How good it was, measured on pictures that it was not fitted on.
    """

    right: Regression
    known: Regression
    pictures: KnownPictures
    weights: str
    fitted_on: Mapping[str, Any] = field(default_factory=dict)
    measured: Mapping[str, Any] = field(default_factory=dict)

    def probabilities(self, signals: torch.Tensor) -> torch.Tensor:
        """Returns the confidence of captions, float64 [R], from their `SIGNALS`, float64 [R, 5]."""
        return self.right.probability(signals) * self.known.probability(signals)

    def measure(
        self,
        model: CaptionerForConditionalGeneration,
        processor: CaptionerProcessor,
        generation: Generation,
        log_probs: torch.Tensor,
        features: torch.Tensor,
    ) -> list[float]:
        """Returns the confidence of captions. It depends only on the model, the picture, the prompt and the tokens.

        Args:
            model: The model that wrote the captions.
            processor: The model's processor.
            generation: The captions.
            log_probs: The log-probability of each new token, as [`caption_signals`] takes it.
            features: The features of each caption's picture, float [R, N, D_vision].
        """
        signals = caption_signals(model, processor, generation, log_probs)
        return self.probabilities(torch.cat([signals, self.pictures.log_distances(features)], dim=1)).tolist()

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
            "right": vars(self.right),
            "known": vars(self.known),
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
        mean, deviation = (_numbers(content["pictures"][name]) for name in ("mean", "deviation"))
        if mean.ndim != 1 or mean.shape != deviation.shape or not len(mean):
            raise ValueError("its features of pictures do not fit together")
        if not bool((deviation > 0).all()):
            raise ValueError("a standard deviation is not above 0")
        facts = [content["fitted_on"], content["measured"]]
        if not isinstance(content["weights"], str) or not all(isinstance(fact, dict) for fact in facts):
            raise ValueError("it does not say what it was fitted on")
        return cls(right, known, KnownPictures(mean, deviation), content["weights"], *facts)


def _damaged(path: Path, reason: str) -> CheckpointError:
    return CheckpointError(
        f"{path} cannot be used ({reason}): fetch it again, make it with scripts/calibrate.py, or remove it and have "
        "no confidences."
    )


def _numbers(values: Any) -> torch.Tensor:
    try:
        table = torch.tensor(values, dtype=torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ValueError("it has something else where numbers belong") from error
    if not bool(table.isfinite().all()):
        raise ValueError("a number is not finite")
    return table


def _parse_regression(fields: Mapping[str, Any]) -> Regression:
    vectors = {name: _numbers(fields[name]) for name in ("mean", "scale", "weights")}
    if any(tuple(vector.shape) != (len(SIGNALS),) for vector in vectors.values()):
        raise ValueError("a regression does not fit the signals")
    if not bool((vectors["scale"] > 0).all()):
        raise ValueError("a standard deviation is not above 0")
    bias = _numbers(fields["bias"])
    return Regression(**{name: tuple(vector.tolist()) for name, vector in vectors.items()}, bias=bias.item())


def _rounded(values: torch.Tensor) -> list[float]:
    """Returns numbers with five significant digits, which is far below the noise in features."""
    return [float(f"{value:.5g}") for value in values.tolist()]

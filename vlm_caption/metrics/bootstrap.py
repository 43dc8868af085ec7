"""How far scores can be trusted: the bootstrap over images.

Images are drawn with replacement, as many as there are, and the corpus value is computed anew for each draw (Efron,
"Bootstrap Methods: Another Look at the Jackknife", 1979; for BLEU, and for two systems on the same images, Koehn,
"Statistical Significance Tests for Machine Translation Evaluation", EMNLP 2004). Intervals are percentiles. Captions
of one image, such as answers to several questions about it, are drawn together (the cluster bootstrap; Davison and
Hinkley, "Bootstrap Methods and their Application", 1997). BLEU is resampled through the counts that it is made of;
CIDEr's document frequencies stay those of all images. METEOR has no interval: its corpus value is no mean of the
images' values, and pycocoevalcap keeps its counts to itself.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from .ngram_scores import BLEU_ORDER, combine_bleu
from .scoring import Scores

# How many draws are held at a time: 8 bytes each.
_DRAWS_AT_A_TIME = 4_000_000


class Interval(NamedTuple):
    """The ends of a percentile interval."""

    low: float
    high: float


class Difference(NamedTuple):
    """How two systems differ on the same images.

    Attributes:
        difference: First minus second.
        low, high: The ends of its percentile interval.
        other_sign: The share of resamples in which the difference is zero or has the other sign: below 0.05, Koehn
            calls the better system better with 95 % confidence.
    """

    difference: float
    low: float
    high: float
    other_sign: float


def confidence_intervals(
    scores: Scores,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    groups: Sequence[object] | None = None,
) -> dict[str, Interval]:
    """Returns percentile intervals of all corpus values except METEOR's.

    Args:
        scores: The scores of N captions.
        resamples: How often as many images are drawn as there are.
        confidence: The share of resamples within an interval.
        seed: The seed of the draws; the same seed and number of images give the same draws.
        groups: What tells the images of the N captions apart, a hashable object for each; by default each caption has
            an image of its own.
    """
    if not _resampled_metrics(scores):
        return {}
    resampled = _resample([scores], groups, resamples, seed)[0]
    return {name: _interval(values, confidence) for name, values in resampled.items()}


def compare(
    first: Scores,
    second: Scores,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    groups: Sequence[object] | None = None,
) -> dict[str, Difference]:
    """Compares two systems that captioned the same images in the same order, by the paired bootstrap.

    Only metrics that both have are compared, and METEOR is not. For the arguments, see `confidence_intervals`.

    Raises:
        ValueError: The references of the two are not the same.
    """
    if first.reference_tokens != second.reference_tokens:
        raise ValueError("the two systems were not scored on the same references in the same order")
    shared = [name for name in _resampled_metrics(first) if name in second.corpus]
    if not shared:
        return {}
    ours, theirs = _resample([first, second], groups, resamples, seed)
    differences = {}
    for name in shared:
        observed = first.corpus[name] - second.corpus[name]
        resampled = ours[name] - theirs[name]
        other_sign = np.mean(resampled * np.sign(observed) <= 0)
        differences[name] = Difference(observed, *_interval(resampled, confidence), float(other_sign))
    return differences


def mean_interval(
    values: np.ndarray,
    resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
    groups: Sequence[object] | None = None,
) -> Interval:
    """Returns the percentile interval of the mean of values [N]; for the arguments, see `confidence_intervals`."""
    table = np.column_stack([np.asarray(values, dtype=np.float64), np.ones(len(values))])
    sums = np.concatenate([weights @ table for weights in _draw(len(table), groups, resamples, seed)])
    return _interval(sums[:, 0] / sums[:, 1], confidence)


def number_groups(groups: Sequence[object]) -> np.ndarray:
    """Returns the number of each member's group, int64 [N], in the order in which the groups occur."""
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    return np.array([numbers[group] for group in groups], dtype=np.int64)


def _resampled_metrics(scores: Scores) -> list[str]:
    return [name for name in scores.corpus if name != "meteor"]


def _resample(
    systems: list[Scores], groups: Sequence[object] | None, resamples: int, seed: int
) -> list[dict[str, np.ndarray]]:
    """Returns the corpus values [resamples] of each system, with the same draws for all."""
    tables = [_Table(scores) for scores in systems]
    sums: list[list[np.ndarray]] = [[] for _ in systems]
    for weights in _draw(len(systems[0].caption_tokens), groups, resamples, seed):
        for table, parts in zip(tables, sums, strict=True):
            parts.append(weights @ table.columns)
    return [table.combine(np.concatenate(parts)) for table, parts in zip(tables, sums, strict=True)]


def _draw(captions: int, groups: Sequence[object] | None, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Yields how often each caption was drawn, float [some resamples, captions], until there are `resamples` rows."""
    image_of = number_groups(range(captions) if groups is None else groups)
    images = int(image_of.max()) + 1
    generator = np.random.default_rng(seed)
    step = max(1, _DRAWS_AT_A_TIME // captions)
    for start in range(0, resamples, step):
        rows = min(step, resamples - start)
        drawn = generator.integers(images, size=(rows, images)) + images * np.arange(rows)[:, None]
        times = np.bincount(drawn.ravel(), minlength=rows * images).reshape(rows, images)
        yield times[:, image_of].astype(np.float64)


class _Table:
    """What is summed over images, side by side, so that a resample is one row of a matrix product."""

    def __init__(self, scores: Scores):
        self.means = [name for name in ("rouge_l", "cider", "spice") if name in scores.corpus]
        self.counts = list(scores.counts)
        parts = [scores.per_image[name][:, None] for name in self.means] + [scores.counts[key] for key in self.counts]
        self.ends = np.cumsum([part.shape[1] for part in parts])
        self.columns = np.concatenate([*parts, np.ones((len(scores.caption_tokens), 1))], axis=1)

    def combine(self, sums: np.ndarray) -> dict[str, np.ndarray]:
        """Returns the corpus values of summed columns [resamples, K]; the last has the numbers of captions."""
        values = {}
        for name, part in zip(self.means + self.counts, np.split(sums, self.ends, axis=1)[:-1], strict=True):
            if name == "bleu":
                values |= {f"bleu_{n + 1}": combine_bleu(part)[:, n] for n in range(BLEU_ORDER)}
            else:
                values[name] = part[:, 0] / sums[:, -1]
        return values


def _interval(values: np.ndarray, confidence: float) -> Interval:
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(float(low), float(high))

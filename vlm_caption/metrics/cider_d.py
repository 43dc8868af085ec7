"""CIDEr-D of single captions, with the document frequencies of a corpus that is larger than what is scored.

`score_cider` scores a whole split at once, with the split's own document frequencies. A reward of training has a few
captions at a time, and the document frequencies of everything that is trained on. The arithmetic is that of
pycocoevalcap: Vedantam et al. 2015 with clipped counts and a penalty of length.
"""

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

ORDERS = 4
SIGMA = 6.0  # of the penalty of length

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """A text's n-grams with their weights, by order; their norms; and the text's length as pycocoevalcap counts it."""

    weights: list[dict[Ngram, float]]
    norms: list[float]
    length: int


class CiderD:
    """Scores captions by CIDEr-D.

    Args:
        corpus: The references of every image of the corpus, as tokens separated by spaces. They are read once.

    Raises:
        ValueError: There are no images.
    """

    def __init__(self, corpus: Iterable[Sequence[str]]):
        references = list(corpus)
        self._set_counts(len(references), self.count(references))

    @classmethod
    def from_counts(cls, images: int, counts: Mapping[Ngram, int]) -> Self:
        """Makes a scorer from the number of images of a corpus and what `count` returned for them, or a part of it."""
        scorer = cls.__new__(cls)
        scorer._set_counts(images, counts)
        return scorer

    @staticmethod
    def count(corpus: Iterable[Sequence[str]]) -> Counter[Ngram]:
        """Returns in how many images of a corpus each n-gram occurs."""
        frequencies: Counter[Ngram] = Counter()
        for references in corpus:
            frequencies.update({ngram for text in references for ngram in _count(text)})
        return frequencies

    def _set_counts(self, images: int, counts: Mapping[Ngram, int]) -> None:
        if not images:
            raise ValueError("there are no references to count n-grams in")
        # An n-gram of a single image weighs as much as one of none, and most n-grams are of a single image.
        self._log_frequencies = {ngram: math.log(count) for ngram, count in counts.items() if count > 1}
        self._log_images = math.log(images)

    def score(self, captions: Sequence[str], references: Sequence[str]) -> list[float]:
        """Returns the score of each caption of one image, a fraction, which papers print × 100.

        Args:
            captions: Tokens of each caption, separated by spaces.
            references: Tokens of each of the image's references, at least one.
        """
        vectors = [self._vector(text) for text in references]
        return [self._mean_similarity(self._vector(caption), vectors) for caption in captions]

    def score_pairs(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
        """Returns the score of every caption with the references of every image, float [captions, images].

        It is a hundred times faster than `score` for each pair: of the references, only those are looked at that share
        an n-gram with the caption.

        Args:
            captions: Tokens of each caption, separated by spaces.
            references: Tokens of each image's references, at least one.
        """
        vectors = [self._vector(text) for texts in references for text in texts]
        counts = np.array([len(texts) for texts in references])
        norms = np.array([vector.norms for vector in vectors]).T  # [orders, references]
        lengths = np.array([vector.length for vector in vectors])
        places: dict[Ngram, list[int]] = {}
        for place, vector in enumerate(vectors):
            for ngram in (ngram for weights in vector.weights for ngram in weights):
                places.setdefault(ngram, []).append(place)
        postings = {
            ngram: (np.array(found), np.array([vectors[place].weights[len(ngram) - 1][ngram] for place in found]))
            for ngram, found in places.items()
        }
        scores = np.zeros((len(captions), len(references)))
        for row, caption in enumerate(map(self._vector, captions)):
            similarity = np.zeros(len(vectors))
            for weights, norm, other_norms in zip(caption.weights, caption.norms, norms, strict=True):
                products = np.zeros(len(vectors))
                for ngram, weight in weights.items():
                    if ngram in postings:
                        found, others = postings[ngram]
                        products[found] += np.minimum(weight, others) * others
                scale = norm * other_norms
                similarity += products / np.where(scale > 0, scale, 1.0)
            similarity *= np.exp(-((caption.length - lengths) ** 2) / (2 * SIGMA**2))
            sums = np.add.reduceat(similarity, np.cumsum(counts) - counts)
            scores[row] = 10 * sums / (ORDERS * counts)
        return scores

    def _vector(self, text: str) -> _Vector:
        weights: list[dict[Ngram, float]] = [{} for _ in range(ORDERS)]
        squares, length = [0.0] * ORDERS, 0
        for ngram, count in _count(text).items():
            order = len(ngram) - 1
            weight = count * (self._log_images - self._log_frequencies.get(ngram, 0.0))
            weights[order][ngram] = weight
            squares[order] += weight * weight
            if order == 1:
                length += count
        return _Vector(weights, [math.sqrt(square) for square in squares], length)

    def _mean_similarity(self, caption: _Vector, references: Sequence[_Vector]) -> float:
        total = 0.0
        for reference in references:
            similarity = 0.0
            for own, other, norm, other_norm in zip(
                caption.weights, reference.weights, caption.norms, reference.norms, strict=True
            ):
                product = sum(
                    min(weight, other[ngram]) * other[ngram] for ngram, weight in own.items() if ngram in other
                )
                similarity += product / (norm * other_norm) if norm and other_norm else product
            total += similarity * math.exp(-((caption.length - reference.length) ** 2) / (2 * SIGMA**2))
        return 10 * total / (ORDERS * len(references))


def _count(text: str) -> Counter[Ngram]:
    words = text.split()
    return Counter(
        tuple(words[start : start + order])
        for order in range(1, ORDERS + 1)
        for start in range(len(words) - order + 1)
    )

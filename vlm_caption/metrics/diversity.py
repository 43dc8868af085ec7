"""What scores against references do not see: whether captions are all alike, copied, or caught in a loop."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from .tokens import Tokenizer, tokenize_with

# "on top of a hat on top of a hat" (salesforce/LAVIS#713) repeats runs of four words; good captions hardly ever do.
REPEATED_ORDER = 4


@dataclass(frozen=True)
class Diversity:
    """How varied some captions are.

    Attributes:
        distinct_1, distinct_2: Different words, and different pairs of neighbours, over the number of words (Li et
            al., "A Diversity-Promoting Objective Function", NAACL 2016). It falls with the number of captions: compare
            on the same images.
        vocabulary: The number of different words.
        mean_length: The mean number of words in a caption.
        unseen: The share of captions that are no training caption, case and punctuation aside; None without training
            captions.
        repeated_4grams: The share of runs of four words that occurred before in the same caption, the mean over
            captions (seq-rep-4 of Welleck et al., "Neural Text Generation with Unlikelihood Training", ICLR 2020);
            shorter captions have none.
        lengths: The number of words in each caption [N].
        repetitions: `repeated_4grams` of each caption [N].
        is_unseen: Whether each caption is no training caption [N], or None.
    """

    distinct_1: float
    distinct_2: float
    vocabulary: int
    mean_length: float
    unseen: float | None
    repeated_4grams: float
    lengths: np.ndarray
    repetitions: np.ndarray
    is_unseen: np.ndarray | None


def measure_diversity(
    captions: Sequence[str], training_captions: Iterable[str] | None = None, tokenizer: Tokenizer = "ptb"
) -> Diversity:
    """Measures captions by their tokens.

    Args:
        captions: One for each image.
        training_captions: Everything that the captioner was trained on.
        tokenizer: What makes the tokens; see [`score`].

    Raises:
        ValueError: There are no captions.
    """
    if not captions:
        raise ValueError("there are no captions to measure")
    tokens = tokenize_with(tokenizer, captions)
    sentences = [caption.split() for caption in tokens]
    lengths = np.array([len(words) for words in sentences])
    words = max(int(lengths.sum()), 1)  # captions without any words have nothing distinct
    vocabulary = len({word for sentence in sentences for word in sentence})
    pairs = len({pair for sentence in sentences for pair in pairwise(sentence)})
    repetitions = np.array([_repetition(sentence) for sentence in sentences])
    is_unseen = None
    if training_captions is not None:
        seen = set(tokenize_with(tokenizer, list(training_captions)))
        is_unseen = np.array([caption not in seen for caption in tokens])
    return Diversity(
        distinct_1=vocabulary / words,
        distinct_2=pairs / words,
        vocabulary=vocabulary,
        mean_length=float(lengths.mean()),
        unseen=None if is_unseen is None else float(is_unseen.mean()),
        repeated_4grams=float(repetitions.mean()),
        lengths=lengths,
        repetitions=repetitions,
        is_unseen=is_unseen,
    )


def _repetition(words: Sequence[str]) -> float:
    runs = [tuple(words[start : start + REPEATED_ORDER]) for start in range(len(words) - REPEATED_ORDER + 1)]
    return 1 - len(set(runs)) / len(runs) if runs else 0.0

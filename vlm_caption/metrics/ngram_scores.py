"""BLEU, ROUGE-L and CIDEr: the scorers of pycocoevalcap, on tokens that need no Java.

BLEU is Papineni et al. 2002 with the nearest reference length, ROUGE-L is Lin 2004 with beta 1.2, CIDEr is CIDEr-D of
Vedantam et al. 2015 with the document frequencies of the references at hand: what COCO's evaluation server computes.
"""

import contextlib
import gc
import json
import subprocess
import sys
from collections.abc import Sequence

import numpy as np

BLEU_ORDER = 4

# The columns of `bleu_statistics`.
BLEU_COLUMNS = ("length", "reference_length", *(f"{kind}_{n}" for kind in ("guess", "correct") for n in range(1, 5)))


def score_bleu(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Computes BLEU-1 to BLEU-4 of the corpus and of each image, and what the corpus value is made of.

    Args:
        captions: Tokens of each image's caption, separated by spaces.
        references: Tokens of each image's references, at least one.

    Returns:
        Corpus values [4], values of each image [N, 4], both fractions, and counts [N, 10] in `BLEU_COLUMNS`.
    """
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer

    scorer = BleuScorer(n=BLEU_ORDER)
    for caption, texts in zip(captions, references, strict=True):
        scorer += (caption, list(texts))
    corpus, per_image = scorer.compute_score(option="closest", verbose=0)
    statistics = [
        [
            counts["testlen"],
            min((abs(length - counts["testlen"]), length) for length in counts["reflen"])[1],
            *counts["guess"],
            *counts["correct"],
        ]
        for counts in scorer.ctest
    ]
    return np.array(corpus), np.array(per_image).T, np.array(statistics, dtype=np.float64)


def combine_bleu(totals: np.ndarray) -> np.ndarray:
    """Returns BLEU-1 to BLEU-4 [..., 4] of summed statistics [..., 10], by pycocoevalcap's formula."""
    length, reference_length = totals[..., 0], totals[..., 1]
    guess, correct = totals[..., 2:6], totals[..., 6:10]
    tiny, small = 1e-15, 1e-9  # pycocoevalcap's guards against empty counts
    orders = np.arange(1, BLEU_ORDER + 1)
    precision = np.cumprod((correct + tiny) / (guess + small), axis=-1) ** (1 / orders)
    ratio = (length + tiny) / (reference_length + small)
    brevity = np.where(ratio < 1, np.exp(1 - 1 / np.minimum(ratio, 1)), 1.0)
    return precision * brevity[..., None]


def score_rouge_l(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns ROUGE-L of each image [N]; the corpus value is their mean. For the arguments, see `score_bleu`."""
    from pycocoevalcap.rouge.rouge import Rouge

    _, per_image = Rouge().compute_score(*_by_index(captions, references))
    return np.asarray(per_image, dtype=np.float64)


def score_cider(captions: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns CIDEr-D of each image [N], a fraction, which papers print × 100; the corpus value is their mean.

    For the arguments, see `score_bleu`. Document frequencies come from these references: the value of an image depends
    on the images it is scored with, and is 0 for a single image.
    """
    from pycocoevalcap.cider.cider import Cider

    if not any(text.strip() for texts in references for text in texts):  # it takes the greatest of no counts
        return np.zeros(len(captions))
    _, per_image = Cider().compute_score(*_by_index(captions, references))
    return np.asarray(per_image, dtype=np.float64)


class CiderProcess:
    """`score_cider` in a process of its own, while this one computes the other scores; the values are the same.

    The process runs this file alone, without the package: it starts in a fifth of a second, forks no threads and does
    not import the caller's script again, as one of `multiprocessing` would.
    """

    def __init__(self):
        self._arguments: tuple[Sequence[str], Sequence[Sequence[str]]] = [], []
        command = [sys.executable, "-P", __file__]  # -P: no file beside this one hides a library
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input, self._output = self._process.stdin, self._process.stdout

    def __enter__(self) -> "CiderProcess":
        return self

    def __exit__(self, *error) -> None:
        self._process.kill()
        self._process.wait()
        self._output.close()
        with contextlib.suppress(BrokenPipeError):
            self._input.close()

    def begin(self, captions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
        """Starts the computation. For the arguments, see `score_cider`."""
        self._arguments = captions, references
        with contextlib.suppress(BrokenPipeError), self._input:  # if it was killed, `result` sees it
            self._input.write(json.dumps(self._arguments).encode())

    def result(self) -> np.ndarray:
        """Returns what `score_cider` does, computed here if the process was killed."""
        values = self._output.read()
        return score_cider(*self._arguments) if self._process.wait() else np.array(json.loads(values))


def _by_index(
    captions: Sequence[str], references: Sequence[Sequence[str]]
) -> tuple[dict[int, list[str]], dict[int, list[str]]]:
    """Returns references and captions as the scorers take them."""
    return (
        {index: list(texts) for index, texts in enumerate(references)},
        {index: [caption] for index, caption in enumerate(captions)},
    )


if __name__ == "__main__":  # as `CiderProcess` runs it
    gc.disable()  # n-grams by the million hold no cycles, and looking for some takes a tenth of the time
    json.dump(score_cider(*json.load(sys.stdin)).tolist(), sys.stdout)

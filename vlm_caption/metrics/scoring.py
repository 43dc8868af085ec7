"""Captions against references: all metrics of COCO's evaluation in one call."""

import importlib.util
from collections.abc import Collection, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np

from ..core.errors import ScorerMissingError
from ..core.threads import count_cores
from . import java_scores, ngram_scores
from .ngram_scores import CiderProcess
from .tokens import Tokenizer, choose_tokenizer, tokenize_with

METRICS = ("bleu", "rouge_l", "cider", "meteor", "spice")

# From so many references on, a process for CIDEr is worth its start.
_REFERENCES_FOR_TWO_PROCESSES = 10_000

# METEOR's stems and synonyms and SPICE's parser are those of English.
_ENGLISH_METRICS = {"meteor": "METEOR", "spice": "SPICE"}


@dataclass(frozen=True)
class Scores:
    """The scores of captions. All values are fractions, which papers print × 100.

    Attributes:
        corpus: `bleu_1` … `bleu_4`, `rouge_l`, `cider`, `meteor`, `spice`: those that were computed.
        per_image: The same names, a value for each image [N]. The mean is the corpus value for `rouge_l`, `cider` and
            `spice` only.
        not_computed: For each other metric that was asked for, why it was not computed.
        caption_tokens, reference_tokens: What was scored, tokens separated by spaces.
        tokenizer: What made the tokens: "ptb", words of the Penn Treebank, or "characters".
        counts: Sums over images of these counts [N, K] give the corpus value: `bleu`.
        notes: What a reader of the values has to know, a sentence each.
    """

    corpus: dict[str, float]
    per_image: dict[str, np.ndarray]
    not_computed: dict[str, str]
    caption_tokens: list[str]
    reference_tokens: list[list[str]]
    tokenizer: Tokenizer = "ptb"
    counts: dict[str, np.ndarray] = field(repr=False, default_factory=dict)
    notes: list[str] = field(default_factory=list)


def score(
    captions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Collection[str] = METRICS,
    java_timeout: float = 1800.0,
    tokenizer: Tokenizer | None = None,
) -> Scores:
    """Scores captions as pycocoevalcap does, tokenization included.

    BLEU, ROUGE-L and CIDEr need no Java. METEOR and SPICE do; where it, or whatever a metric needs, is missing or
    fails, the metric is not computed and the result says why. CIDEr's document frequencies are those of these
    references, so a part of a corpus has other values than the whole. If there is much text and a second core, CIDEr
    is computed in a second process, beside BLEU and ROUGE-L.

    Args:
        captions: One for each image.
        references: One or more for each image.
        metrics: The metrics to compute, some of `METRICS`.
        java_timeout: The seconds that METEOR and SPICE may take each.
        tokenizer: What makes the tokens; by default [`choose_tokenizer`] chooses by the references. METEOR and SPICE
            are not computed from characters.

    Raises:
        ValueError: There are no images, numbers differ, an image has no reference, or a metric is unknown.
    """
    _check(captions, references, metrics)
    all_references = [text for texts in references for text in texts]
    tokenizer = tokenizer or choose_tokenizer(all_references)
    with CiderProcess() if _two_processes_pay(references, metrics) else nullcontext() as cider_process:
        tokens = tokenize_with(tokenizer, captions)
        flat = iter(tokenize_with(tokenizer, all_references))
        reference_tokens = [[next(flat) for _ in texts] for texts in references]
        if cider_process is not None:
            cider_process.begin(tokens, reference_tokens)
        scores = Scores({}, {}, {}, tokens, reference_tokens, tokenizer)
        for metric in METRICS:
            if metric in metrics:
                try:
                    _add(scores, metric, java_timeout, cider_process)
                except ScorerMissingError as error:
                    for name in _names(metric):
                        scores.not_computed[name] = str(error)
    scores.notes.extend(_find_notes(scores))
    return scores


def _two_processes_pay(references: Sequence[Sequence[str]], metrics: Collection[str]) -> bool:
    return (
        count_cores() > 1
        and "cider" in metrics
        and not {"bleu", "rouge_l"}.isdisjoint(metrics)
        and sum(map(len, references)) >= _REFERENCES_FOR_TWO_PROCESSES
        and importlib.util.find_spec("pycocoevalcap") is not None
    )


def _check(captions: Sequence[str], references: Sequence[Sequence[str]], metrics: Collection[str]) -> None:
    if not captions:
        raise ValueError("there are no captions to score")
    if len(captions) != len(references):
        raise ValueError(f"{len(captions)} captions, but references for {len(references)} images")
    bare = [index for index, texts in enumerate(references) if not texts]
    if bare:
        raise ValueError(f"{len(bare)} of {len(references)} images have no reference, first: number {bare[0]}")
    unknown = sorted(set(metrics) - set(METRICS))
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}: choose of {', '.join(METRICS)}")


def _add(scores: Scores, metric: str, java_timeout: float, cider_process: CiderProcess | None) -> None:
    if importlib.util.find_spec("pycocoevalcap") is None:
        raise ScorerMissingError(f"{metric} needs pycocoevalcap: pip install 'vlm-caption[metrics]'")
    if scores.tokenizer == "characters" and metric in _ENGLISH_METRICS:
        raise ScorerMissingError(f"{_ENGLISH_METRICS[metric]} is for English, and the references are not")
    captions, references = scores.caption_tokens, scores.reference_tokens
    if metric == "bleu":
        corpus, per_image, scores.counts["bleu"] = ngram_scores.score_bleu(captions, references)
        for name, value, values in zip(_names("bleu"), corpus, per_image.T, strict=True):
            scores.corpus[name], scores.per_image[name] = float(value), values
    elif metric == "meteor":
        scores.corpus["meteor"], scores.per_image["meteor"] = java_scores.score_meteor(
            captions, references, java_timeout
        )
    elif metric == "spice":
        scores.corpus["spice"], scores.per_image["spice"] = java_scores.score_spice(captions, references, java_timeout)
    else:
        if metric == "rouge_l":
            values = ngram_scores.score_rouge_l(captions, references)
        else:
            values = cider_process.result() if cider_process else ngram_scores.score_cider(captions, references)
        scores.per_image[metric], scores.corpus[metric] = values, float(values.mean())


def _find_notes(scores: Scores) -> list[str]:
    notes = []
    if scores.tokenizer == "characters":
        notes.append(
            "The references are mostly of a script without spaces, so scores and lengths count characters, not words."
        )
    if "cider" in scores.corpus and len(scores.caption_tokens) == 1:
        notes.append("CIDEr of a single image is always 0: it weighs words by how few of the images have them.")
    if "meteor" in scores.corpus:
        texts = [*scores.caption_tokens, *(text for texts in scores.reference_tokens for text in texts)]
        if long := sum(len(text.split(" ")) > java_scores.METEOR_WORDS for text in texts):
            notes.append(
                f"METEOR counts the first {java_scores.METEOR_WORDS:,} words of longer captions and references: "
                f"{long:,} were cut."
            )
    return notes


def _names(metric: str) -> list[str]:
    return [f"bleu_{n}" for n in range(1, ngram_scores.BLEU_ORDER + 1)] if metric == "bleu" else [metric]

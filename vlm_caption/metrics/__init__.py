"""Metrics of captions: `score` for those of COCO's evaluation, and what else says how good captions are."""

from .bootstrap import Difference, Interval, compare, confidence_intervals, mean_interval
from .coco_files import CaptionPairs, pair_captions, read_references, read_results
from .diversity import Diversity, measure_diversity
from .errors import ScorerMissingError
from .ptb_tokenizer import tokenize
from .scoring import METRICS, Scores, score

__all__ = [
    "METRICS",
    "CaptionPairs",
    "Difference",
    "Diversity",
    "Interval",
    "ScorerMissingError",
    "Scores",
    "compare",
    "confidence_intervals",
    "mean_interval",
    "measure_diversity",
    "pair_captions",
    "read_references",
    "read_results",
    "score",
    "tokenize",
]

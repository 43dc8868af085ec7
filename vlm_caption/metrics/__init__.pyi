from .bootstrap import Difference, Interval, compare, confidence_intervals, mean_interval
from .coco_files import CaptionPairs, ImageId, pair_captions, read_file_names, read_references, read_results
from .diversity import Diversity, measure_diversity
from .names import COCO_METRICS, METRIC_NAMES
from .ptb_tokens import tokenize
from .scoring import METRICS, ScorerMissingError, Scores, score
from .tokens import choose_tokenizer, tokenize_characters

__all__ = [
    "COCO_METRICS",
    "METRICS",
    "METRIC_NAMES",
    "CaptionPairs",
    "Difference",
    "Diversity",
    "ImageId",
    "Interval",
    "ScorerMissingError",
    "Scores",
    "choose_tokenizer",
    "compare",
    "confidence_intervals",
    "mean_interval",
    "measure_diversity",
    "pair_captions",
    "read_file_names",
    "read_references",
    "read_results",
    "score",
    "tokenize",
    "tokenize_characters",
]

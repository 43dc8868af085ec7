from .evaluate import InputSettings, evaluate_files, training_captions
from .files import write_evaluation
from .result import Comparison, Evaluation
from .scoring import ScoringSettings
from .table import evaluation_table

__all__ = [
    "Comparison",
    "Evaluation",
    "InputSettings",
    "ScoringSettings",
    "evaluate_files",
    "evaluation_table",
    "training_captions",
    "write_evaluation",
]

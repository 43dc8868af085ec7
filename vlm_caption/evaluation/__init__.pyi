from .calibration import Calibration, CalibrationSettings, calibrate
from .calibration_report import CalibrationReport, draw_reliability
from .evaluate import InputSettings, evaluate_files, training_captions
from .files import write_evaluation
from .result import Comparison, Evaluation
from .scoring import ScoringSettings
from .table import evaluation_table

__all__ = [
    "Calibration",
    "CalibrationReport",
    "CalibrationSettings",
    "Comparison",
    "Evaluation",
    "InputSettings",
    "ScoringSettings",
    "calibrate",
    "draw_reliability",
    "evaluate_files",
    "evaluation_table",
    "training_captions",
    "write_evaluation",
]

from .data import CaptionSplits, TrainingData, prepare_data
from .feature_caching import cache_features
from .loop import TrainingLoop
from .stages import Stage, plan_stages
from .state import RunState

__all__ = [
    "CaptionSplits",
    "RunState",
    "Stage",
    "TrainingData",
    "TrainingLoop",
    "cache_features",
    "plan_stages",
    "prepare_data",
]

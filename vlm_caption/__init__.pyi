from .captioning.caption import Caption
from .captioning.captioner import Captioner
from .config.run_config import RunConfig
from .core.errors import BackboneError, CheckpointError, ConfigError, DataError, ImageError
from .data.formats import load_captions
from .evaluation.evaluate import evaluate, evaluate_files
from .hub.card import write_model_card
from .images.opening import open_image
from .inspection.inspect import inspect_data
from .towers.captioner import CaptionerForConditionalGeneration, CaptionerModel
from .towers.composition import compose
from .towers.configuration import CaptionerConfig
from .towers.processor import CaptionerProcessor
from .towers.sources import resolve_backbone
from .training.feature_caching import cache_features
from .training.train import train

__version__: str

__all__ = [
    "BackboneError",
    "Caption",
    "Captioner",
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerModel",
    "CaptionerProcessor",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "ImageError",
    "RunConfig",
    "cache_features",
    "compose",
    "evaluate",
    "evaluate_files",
    "inspect_data",
    "load_captions",
    "open_image",
    "resolve_backbone",
    "train",
    "write_model_card",
]

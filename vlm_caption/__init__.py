"""A frozen vision tower and a frozen language model, joined by one small trained projection: image captions."""

from .backbones import BackboneError, resolve_backbone
from .composition import compose
from .configuration_captioner import CaptionerConfig
from .images import ImageError, open_image
from .modeling_captioner import CaptionerForConditionalGeneration, CaptionerModel
from .processing_captioner import CaptionerProcessor

__version__ = "0.1.0"

__all__ = [
    "BackboneError",
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerModel",
    "CaptionerProcessor",
    "ImageError",
    "compose",
    "open_image",
    "resolve_backbone",
]

"""A frozen vision tower and a frozen language model, joined by one small trained projection: image captions."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .backbones import BackboneError, resolve_backbone
from .captioner import Caption, Captioner
from .composition import compose
from .configuration_captioner import CaptionerConfig
from .images import ImageError, open_image
from .model_card import write_model_card
from .modeling_captioner import CaptionerForConditionalGeneration, CaptionerModel
from .processing_captioner import CaptionerProcessor

__version__ = "0.1.0"

CaptionerProcessor.open_image = staticmethod(open_image)

AutoConfig.register(CaptionerConfig.model_type, CaptionerConfig)
AutoProcessor.register(CaptionerConfig, CaptionerProcessor)
AutoModel.register(CaptionerConfig, CaptionerModel)
AutoModelForImageTextToText.register(CaptionerConfig, CaptionerForConditionalGeneration)

__all__ = [
    "BackboneError",
    "Caption",
    "Captioner",
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerModel",
    "CaptionerProcessor",
    "ImageError",
    "compose",
    "open_image",
    "resolve_backbone",
    "write_model_card",
]

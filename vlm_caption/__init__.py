"""A frozen vision tower and a frozen language model, joined by one small trained projection: image captions."""

from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

from .captioning.captioner import Caption, Captioner
from .core.errors import BackboneError, ImageError
from .hub.card import write_model_card
from .hub.upload import upload_checkpoint
from .images.opening import open_image
from .model.configuration_captioner import CaptionerConfig
from .model.processing_captioner import CaptionerProcessor
from .towers.captioner import CaptionerForConditionalGeneration, CaptionerModel, CaptionerPreTrainedModel
from .towers.composition import compose
from .towers.sources import resolve_backbone

__version__ = "0.1.0"

# What rooms above give to classes below, in this one place.
CaptionerProcessor.open_image = staticmethod(open_image)
CaptionerPreTrainedModel.upload_checkpoint = upload_checkpoint

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

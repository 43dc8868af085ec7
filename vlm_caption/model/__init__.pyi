from .configuration_captioner import CaptionerConfig
from .freezing import ModulePolicy, describe_policy, freeze, set_policies
from .loss import caption_loss, training_loss
from .modeling_captioner import (
    CaptionerCausalLMOutputWithPast,
    CaptionerForConditionalGeneration,
    CaptionerModel,
    CaptionerModelOutputWithPast,
)
from .processing_captioner import CaptionerProcessor, VectorProcessor
from .projectors import PROJECTORS, build_projector

__all__ = [
    "PROJECTORS",
    "CaptionerCausalLMOutputWithPast",
    "CaptionerConfig",
    "CaptionerForConditionalGeneration",
    "CaptionerModel",
    "CaptionerModelOutputWithPast",
    "CaptionerProcessor",
    "ModulePolicy",
    "VectorProcessor",
    "build_projector",
    "caption_loss",
    "describe_policy",
    "freeze",
    "set_policies",
    "training_loss",
]

from .captioner import CaptionerForConditionalGeneration, CaptionerModel, CaptionerPreTrainedModel
from .composition import compose
from .fingerprints import weights_fingerprint
from .sources import fingerprint, resolve_backbone
from .tokenizers import load_tokenizer, new_tokenizer
from .wheels import WHEELS, Wheel

__all__ = [
    "WHEELS",
    "CaptionerForConditionalGeneration",
    "CaptionerModel",
    "CaptionerPreTrainedModel",
    "Wheel",
    "compose",
    "fingerprint",
    "load_tokenizer",
    "new_tokenizer",
    "resolve_backbone",
    "weights_fingerprint",
]

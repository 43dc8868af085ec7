from .captioner import Captioner
from .files import is_export
from .rules import DecodingSettings

__all__ = ["Captioner", "DecodingSettings", "is_export"]

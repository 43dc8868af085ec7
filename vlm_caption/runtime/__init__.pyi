from .captioner import Captioner, DecodingSettings
from .files import is_export

__all__ = ["Captioner", "DecodingSettings", "is_export"]

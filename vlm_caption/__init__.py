"""A frozen vision tower, a frozen language model and one small trained projection: image captions.

The names below are imported when they are first used: `import vlm_caption` alone imports neither torch nor
transformers. Every command of `vlm-caption` is also a function here.
"""

import lazy_loader

from . import registration as registration  # joins us to transformers, whichever of the two is imported first

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

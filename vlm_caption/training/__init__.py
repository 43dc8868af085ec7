"""Trains a captioner: `vlm_caption.train` for a run, `cache_features` for its image features ahead of it.

`train.py` does the parts of a run in order. `TrainingLoop` is the loop itself, on accelerate. Every checkpoint is
whole or not there.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Captions images and vectors, and writes captions to files.

`Captioner` is for use in Python, `CaptionJob` for the command line. `generate` is the one place that calls the
model's `generate` and decodes what it returns. `caption_nll` is the loss on captions, exact over tokens.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

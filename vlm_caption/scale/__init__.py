"""Captions with many processes, on one machine or on several.

`RayCaptioner` has the methods of `vlm_caption.Captioner` that caption pictures, and hands the pictures to actors of
Ray. What it needs beside Ray is what the captioner needs: torch for a checkpoint, onnxruntime for an export.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

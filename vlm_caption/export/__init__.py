"""Exports a captioner to ONNX, for [`vlm_caption.runtime`], which needs neither torch nor transformers.

`export_onnx` writes a folder with the vision tower and its projector as one graph, the language model with its cache
as another, and everything else that captioning needs.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

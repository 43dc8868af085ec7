"""Captions pictures with an exported captioner: onnxruntime, tokenizers, safetensors, NumPy and Pillow, without torch.

`Captioner` has the methods of `vlm_caption.Captioner`, and writes the same captions. `vlm_caption.export` makes the
folder that it loads. Nothing here imports torch, transformers or datasets.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

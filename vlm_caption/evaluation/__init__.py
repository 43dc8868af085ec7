"""Scores captions: `vlm_caption.evaluate` for a checkpoint, `evaluate_files` for captions in files.

Both return an `Evaluation`, with intervals, which `write_evaluation` writes as COCO's files, a table and a page.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

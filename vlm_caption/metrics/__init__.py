"""Metrics of captions: `score` for those of COCO's evaluation, and what else says how good captions are."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Looks at captioned images before training: what a corpus contains, and what is wrong with it."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

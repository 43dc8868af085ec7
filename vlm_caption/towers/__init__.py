"""Pretrained towers: where they come from, how they are loaded, and how two of them become a captioner.

`compose` makes a captioner of two towers. The classes here are those of `model` with training, saving and loading; a
checkpoint of unknown origin is checked before anything is built from it.
"""

import lazy_loader

# First, because importing transformers completes the classes of this room (see registration.py). If one of its files
# imported transformers first, registration would find that file half-imported.
import transformers as transformers

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

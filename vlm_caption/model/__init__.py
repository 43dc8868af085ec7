"""The captioner as transformers classes: config, processor, model, projectors, freezing and loss.

Full checkpoints carry some of these files, so they import nothing but each other and published packages. The classes
of the same names in `towers` add training, saving and loading.
"""

import lazy_loader

# First, because importing transformers completes the classes of this room (see registration.py). If one of its files
# imported transformers first, registration would find that file half-imported.
import transformers as transformers

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Image features: the output of a frozen vision tower, computed once for each image and kept on disk.

`image_features` computes what the cache lacks and returns a table of memory-mapped rows. `ImageInputs` gives a batch's
images to the model as such features, as pixels, or as vectors that were computed elsewhere.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""Opens images of every kind in one way, `open_image`, and finds images in folders.

An image comes from a file, a URL, bytes, an array or a tensor, and becomes an upright 8-bit RGB picture in sRGB.
Limits on pixels, bytes and seconds hold for all of them.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

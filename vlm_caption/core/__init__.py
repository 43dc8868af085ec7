"""What every other room uses: errors, files, the terminal, text, signals, threads and the cache.

It imports nothing heavy, and nothing from the rest of the package.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

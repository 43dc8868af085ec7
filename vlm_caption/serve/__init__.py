"""Serves a captioner: a page for the browser, and beside it an API that speaks OpenAI's chat completions.

`serve` runs both until it is interrupted. Requests wait in a `Batcher`, which lets one thread caption those with equal
settings together. The protocol, the app, the page and the guard in front of them are a module each.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

"""The command line: `vlm-caption COMMAND`, and the same commands as scripts in a clone, `python scripts/COMMAND.py`.

There is one module for each command. Its `main` parses the arguments before it imports anything heavy, so that
`--help` and mistakes are answered at once. Everything else is a call of a function in the other rooms.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)

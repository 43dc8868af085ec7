"""How captions name their pictures, and how a picture is recognised by its name."""

import os
import re

from ..core.text import readable

_URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)


def is_url(name: str) -> bool:
    """Returns whether a name is a URL, `data:` included."""
    return _URL.match(name) is not None


def place_of(name: str) -> str:
    """Returns the place that identifies a picture however its path is spelled: its absolute path, or its URL.

    Args:
        name: The picture's name as in `Caption.image`, or as in a line of a caption file.
    """
    return name if is_url(name) else readable(os.path.abspath(name))  # noqa: PTH100 - links are kept

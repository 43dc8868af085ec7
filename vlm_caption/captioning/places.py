"""How captions name their pictures, and how a job that resumes recognises a picture by its name."""

import os
import re

from ..core.text import readable

URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)


def place_of(name: str) -> str:
    """Returns the place that identifies a picture however its path is spelled: its absolute path, or its URL.

    Args:
        name: The picture's name as in `Caption.image`, or as in a line of a caption file.
    """
    return name if URL.match(name) else readable(os.path.abspath(name))  # noqa: PTH100 - links are kept

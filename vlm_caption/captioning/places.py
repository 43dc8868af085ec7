"""Names of pictures by which a job that resumes knows them."""

import os
import re

from ..core.text import readable

URL = re.compile(r"[a-z][a-z0-9+.-]+://|data:", re.IGNORECASE)


def place_of(name: str) -> str:
    """Returns a picture's place by which it is known, however its path is spelled; for a URL, the URL.

    Args:
        name: What `Caption.image` says, or the line of a caption file.
    """
    return name if URL.match(name) else readable(os.path.abspath(name))  # noqa: PTH100 - links are kept

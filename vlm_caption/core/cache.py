"""The folder for converted towers, corpora and features."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Returns the cache folder, which may not exist yet.

    It is `$VLM_CAPTION_CACHE` if that is set, otherwise `vlm_caption` in `$XDG_CACHE_HOME` or in `~/.cache`.
    """
    if own := os.environ.get("VLM_CAPTION_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlm_caption"

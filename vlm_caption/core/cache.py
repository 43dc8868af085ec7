"""The folder that downloads, converted towers and computed features are kept in."""

import os
from pathlib import Path


def cache_dir() -> Path:
    """Return where converted towers are kept.

    That is `$VLM_CAPTION_CACHE`, else `vlm_caption` in `$XDG_CACHE_HOME`, else `~/.cache/vlm_caption`. It may not
    exist yet.
    """
    if own := os.environ.get("VLM_CAPTION_CACHE"):
        return Path(own).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "vlm_caption"

"""Captions images, or vectors: `python scripts/caption.py photo.jpg [more images or folders]`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/caption.py`."""
    return run("caption", argv, prog="caption.py")


if __name__ == "__main__":
    sys.exit(main())

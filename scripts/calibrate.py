"""Fits confidences of captions: `python scripts/calibrate.py --checkpoint runs/mine --data.path mine`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/calibrate.py`."""
    return run("calibrate", argv, prog="calibrate.py")


if __name__ == "__main__":
    sys.exit(main())

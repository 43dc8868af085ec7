"""Scores a checkpoint or captions: `python scripts/evaluate.py --checkpoint runs/mine --data.path mine`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/evaluate.py`."""
    return run("evaluate", argv, prog="evaluate.py")


if __name__ == "__main__":
    sys.exit(main())

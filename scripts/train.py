"""Trains a captioner: `python scripts/train.py --config configs/embedded.yaml [--max-steps 100 …]`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/train.py`."""
    return run("train", argv, prog="train.py")


if __name__ == "__main__":
    sys.exit(main())

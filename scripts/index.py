"""Collects captioned images into a datastore: `python scripts/index.py --data.path mine mine-datastore`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/index.py`."""
    return run("index", argv, prog="index.py")


if __name__ == "__main__":
    sys.exit(main())

"""Captions the photos in `examples/` and writes a page of them: `python scripts/demo.py`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/demo.py`."""
    return run("demo", argv, prog="demo.py")


if __name__ == "__main__":
    sys.exit(main())

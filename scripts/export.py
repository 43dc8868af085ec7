"""Exports a checkpoint for captioning without torch: `python scripts/export.py --checkpoint runs/mine exported`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/export.py`."""
    return run("export", argv, prog="export.py")


if __name__ == "__main__":
    sys.exit(main())

"""Serves a captioner, as a page and an API: `python scripts/serve.py`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/serve.py`."""
    return run("serve", argv, prog="serve.py")


if __name__ == "__main__":
    sys.exit(main())

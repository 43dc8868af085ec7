"""Looks at captioned images before training: `python scripts/inspect_data.py ../shared/flickr8k`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/inspect.py`."""
    return run("inspect", argv, prog="inspect_data.py")


if __name__ == "__main__":
    sys.exit(main())

"""Computes image features ahead of training: `python scripts/cache_features.py --config configs/embedded.yaml`."""

import sys

from vlm_caption.cli.main import run


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code; see `vlm_caption/cli/cache.py`."""
    return run("cache", argv, prog="cache_features.py")


if __name__ == "__main__":
    sys.exit(main())

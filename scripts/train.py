"""Trains a captioner: `accelerate launch scripts/train.py --config configs/embedded.yaml [--max-steps 100 …]`."""

import argparse
import sys

from vlm_caption.backbones import BackboneError
from vlm_caption.console import setup_logging
from vlm_caption.data import DataError
from vlm_caption.images import ImageError
from vlm_caption.run_config import ConfigError, RunConfig, add_arguments, parse_arguments
from vlm_caption.training import train


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, or 2 for settings or data that cannot be used."""
    parser = argparse.ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", help="a YAML file of settings, e.g. configs/embedded.yaml")
    add_arguments(parser)
    setup_logging()
    try:
        arguments, overrides = parse_arguments(parser, argv)
        train(RunConfig.load(arguments.config, overrides))
    except (ConfigError, DataError, ImageError, BackboneError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())

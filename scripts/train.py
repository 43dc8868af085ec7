"""Trains a captioner: `accelerate launch scripts/train.py --config configs/embedded.yaml [--max-steps 100 …]`."""

import os
import signal
import sys

import datasets
from transformers.utils import logging as transformers_logging

from vlm_caption.backbones import BackboneError
from vlm_caption.console import ArgumentParser, setup_logging
from vlm_caption.data import DataError
from vlm_caption.images import ImageError
from vlm_caption.run_config import ConfigError, RunConfig, add_arguments, parse_arguments
from vlm_caption.training import train


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0, 2 for settings or data that cannot be used, or 130 for a run that was interrupted."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", help="a YAML file of settings, e.g. configs/embedded.yaml")
    add_arguments(parser)
    if os.environ.get("RANK", "0") == "0":  # of several processes, one speaks
        setup_logging()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # of each file saved; not the training's
    datasets.disable_progress_bars()  # of leaving out rows
    try:
        arguments, overrides = parse_arguments(parser, argv)
        train(RunConfig.load(arguments.config, overrides))
    except (ConfigError, DataError, ImageError, BackboneError) as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("train.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    sys.exit(main())

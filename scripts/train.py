"""Trains a captioner: `accelerate launch scripts/train.py --config configs/embedded.yaml [--max-steps 100 …]`."""

import signal
import sys

import datasets
from safetensors import SafetensorError
from transformers.utils import logging as transformers_logging

from vlm_caption.config.run_config import RunConfig, add_arguments, parse_arguments
from vlm_caption.core.console import ArgumentParser, is_first_process, setup_logging
from vlm_caption.core.errors import BackboneError, ConfigError, ImageError
from vlm_caption.data import DataError
from vlm_caption.training.train import train


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code.

    0; 1 for a loss that is not finite; 2 for settings, data or folders that cannot be used; 130 for a run that Ctrl-C
    ended, 143 for one that SIGTERM did.
    """
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", help="a YAML file of settings, e.g. configs/embedded.yaml")
    add_arguments(parser)
    if is_first_process():  # of several processes, one speaks
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
    except FloatingPointError as error:
        print(f"train.py: {error}", file=sys.stderr)
        return 1
    except (OSError, SafetensorError) as error:  # a full disk is met anywhere
        where = getattr(error, "filename", None)
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        print(f"train.py: {f'{where}: ' if where else ''}{reason}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("train.py: interrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    return 0


if __name__ == "__main__":
    sys.exit(main())

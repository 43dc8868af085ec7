"""Trains a captioner.

For example, with COMMAND for `vlm-caption train` or `python scripts/train.py`:

    COMMAND --config configs/finetune.yaml --data.path mine --output-dir runs/mine
    COMMAND --config configs/embedded.yaml --data.path mine --output-dir runs/mine --epochs 12

The first one fine-tunes the shipped captioner, and the second one trains a new projector. Options take precedence over
the settings of the file. A stopped command resumes if it is given again.
"""

import argparse
import signal

from ..config.command_line import add_arguments, parse_arguments
from ..config.run_config import RunConfig
from ..core.console import ArgumentParser, describe_file_error, is_first_process, loading, setup_logging
from ..core.errors import BackboneError, ConfigError, DataError, ImageError
from ..core.interrupts import ending_at_once


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 1 if the loss is not finite; 2 for settings, data or folders that cannot be used; 130 after
        Ctrl-C and 143 after SIGTERM.
    """
    parser = ArgumentParser(
        prog=prog,
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", help="a YAML file of settings, such as configs/embedded.yaml")
    add_arguments(parser)
    if is_first_process():  # among several processes, only one prints
        setup_logging()
    try:
        arguments, overrides = parse_arguments(parser, argv)
        config = RunConfig.load(arguments.config, overrides)
    except ConfigError as error:
        parser.complain(error)
        return 2
    return _train(config, parser)


def _train(config: RunConfig, parser: ArgumentParser) -> int:
    with loading("PyTorch and transformers"), ending_at_once(parser.prog):
        import datasets
        from safetensors import SafetensorError
        from transformers.utils import logging as transformers_logging

        from ..training.train import train

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()  # one for each file saved; training has its own
    datasets.disable_progress_bars()  # one for each selection of rows
    try:
        train(config)
    except (ConfigError, DataError, ImageError, BackboneError) as error:
        parser.complain(error)
        return 2
    except FloatingPointError as error:
        parser.complain(error)
        return 1
    except (OSError, SafetensorError) as error:  # a disk can be full anywhere
        parser.complain(describe_file_error(error))
        return 2
    except KeyboardInterrupt as error:
        parser.complain("interrupted; the same command goes on from the last checkpoint")
        return 128 + getattr(error, "signum", signal.SIGINT)
    return 0

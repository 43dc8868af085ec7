"""Computes image features before training, which then finds them in the cache.

The options are those of training. Several processes, started with `torchrun --nproc_per_node 2`, share the work.
"""

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
        The exit code: 0; 2 for settings, data or folders that cannot be used; 130 after Ctrl-C and 143 after SIGTERM.
    """
    parser = ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", help="a YAML file of settings, such as configs/embedded.yaml")
    add_arguments(parser)
    if is_first_process():  # among several processes, only one prints
        setup_logging()
    try:
        arguments, overrides = parse_arguments(parser, argv)
        config = RunConfig.load(arguments.config, overrides)
        with loading("PyTorch and transformers"), ending_at_once(prog):
            from transformers.utils import logging as transformers_logging

            from ..training.feature_caching import cache_features
        transformers_logging.set_verbosity_error()
        counts = cache_features(config)
    except (ConfigError, DataError, ImageError, BackboneError) as error:
        parser.complain(error)
        return 2
    except OSError as error:  # a disk can be full anywhere
        parser.complain(describe_file_error(error))
        return 2
    except KeyboardInterrupt as error:
        parser.complain("interrupted; the same command goes on from here")
        return 128 + getattr(error, "signum", signal.SIGINT)
    if is_first_process():
        print(f"cached: {', '.join(f'{split} {count}' for split, count in counts.items())} images")
    return 0

"""Computes image features ahead of training: `python scripts/cache_features.py --config configs/embedded.yaml`.

Takes the options of train.py, which then finds all features in the cache. With `torchrun --nproc_per_node 2` in front,
two processes share the work.
"""

import signal
import sys

from transformers.utils import logging as transformers_logging

from vlm_caption.config.run_config import RunConfig, add_arguments, parse_arguments
from vlm_caption.core.console import ArgumentParser, is_first_process, setup_logging
from vlm_caption.core.errors import BackboneError, ConfigError, ImageError
from vlm_caption.data import DataError
from vlm_caption.training.feature_caching import cache_features


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code.

    0; 2 for settings, data or folders that cannot be used; 130 where Ctrl-C ended it, 143 where SIGTERM did.
    """
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--config", help="a YAML file of settings, e.g. configs/embedded.yaml")
    add_arguments(parser)
    if is_first_process():  # of several processes, one speaks
        setup_logging()
    transformers_logging.set_verbosity_error()
    try:
        arguments, overrides = parse_arguments(parser, argv)
        counts = cache_features(RunConfig.load(arguments.config, overrides))
    except (ConfigError, DataError, ImageError, BackboneError) as error:
        print(f"cache_features.py: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt as error:
        print("cache_features.py: interrupted; the same command goes on from here", file=sys.stderr)
        return 128 + getattr(error, "signum", signal.SIGINT)
    if is_first_process():
        print(f"cached: {', '.join(f'{split} {count}' for split, count in counts.items())} images")
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""Collects captioned images into a datastore, whose captions help to choose those of other images.

For example, with COMMAND for `vlm-caption index` or `python scripts/index.py`:

    COMMAND --data.path mine mine-datastore
    vlm-caption caption --datastore mine-datastore photos/

Nothing is trained. Features come from the cache if they are there.
"""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from ..captioning.checkpoints import DEFAULT_CHECKPOINT
from ..config.command_line import add_arguments, parse_arguments
from ..config.run_config import RunConfig
from ..core.console import ArgumentParser, describe_file_error, printable, setup_logging
from ..core.errors import BackboneError, ConfigError, DataError, ImageError
from ..core.files import exists
from ..core.outputs import Output, check_outputs
from .loading import load_for_datasets

if TYPE_CHECKING:
    from ..captioning.datastore import Datastore


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 2 for what cannot be used; 130 after Ctrl-C.
    """
    parser = ArgumentParser(
        prog=prog, description=__doc__, allow_abbrev=False, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, help="the folder to write")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="the captioner that will use it")
    parser.add_argument("--config", help="a YAML file, for its section data")
    parser.add_argument("--split", help="the split to collect; by default data.train_split")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="as in training")
    add_arguments(parser, ["data"])
    setup_logging()
    try:
        arguments, overrides = parse_arguments(parser, argv)
        config = RunConfig.load(arguments.config, overrides)
        if not config.data.path:
            parser.error("say what to collect: --data.path of captioned images")
        if config.data.features is not None:
            raise ConfigError("data.features gives vectors, and a datastore is of images.")
        _check_folder(arguments.folder)
        store = _collect(arguments, config)
        store.save(arguments.folder)
    except (BackboneError, DataError, ImageError, ValueError) as error:
        parser.complain(error)
        return 2
    except OSError as error:
        parser.complain(describe_file_error(error))
        return 2
    except KeyboardInterrupt as error:
        parser.complain("interrupted; the features computed so far are kept")
        return 128 + getattr(error, "signum", signal.SIGINT)
    print(printable(f"{arguments.folder}: {len(store)} images with {len(store.caption_ends)} captions"))
    return 0


def _check_folder(folder: Path) -> None:
    """Checks that the datastore can be written to a folder without losing anything.

    Raises:
        ConfigError: The folder holds something else under one of its names, or cannot be written.
    """
    from ..captioning.consensus import FREQUENCIES_NAME
    from ..captioning.datastore import DATASTORE_NAME, Datastore

    if exists(folder / "config.json"):
        raise ConfigError(
            f"{folder} holds a checkpoint, whose {FREQUENCIES_NAME} would be replaced: name another one."
        )
    check_outputs(
        [
            Output("folder", folder / DATASTORE_NAME, None, makes_folders=True),
            Output("folder", folder / FREQUENCIES_NAME, (b'{"tokenizer":',), makes_folders=True),
        ]
    )
    if exists(folder / DATASTORE_NAME):
        try:
            Datastore.load(folder)
        except DataError as error:
            raise ConfigError(
                f"{folder / DATASTORE_NAME} is no datastore, and would be lost: name another folder."
            ) from error


def _collect(arguments: argparse.Namespace, config: RunConfig) -> "Datastore":
    from ..captioning.picture_vectors import collect_datastore
    from ..data.opening import bad_images, open_data, picture_opener
    from ..towers.precision import hold_frozen

    data = config.data
    bad = bad_images(data)
    corpus = open_data(data)
    captioner = load_for_datasets(arguments.checkpoint)
    captioner.check_vision_tower()
    split = arguments.split or data.train_split
    dataset = corpus.load(split, data.limit, on_missing=None if bad is None else bad.add_missing)
    hold_frozen(captioner.model, arguments.precision or config.training.precision)
    return collect_datastore(captioner.model, captioner.processor, dataset, picture_opener(data), bad)

"""Looks at captioned images before training."""

import argparse
import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..config.command_line import add_arguments, parse_arguments
from ..config.run_config import RunConfig
from ..core.console import ArgumentParser, loading, positive_int, printable, setup_logging
from ..core.errors import BackboneError, ConfigError, DataError
from ..core.outputs import PAGE, Output, check_outputs
from ..core.shipped import shipped

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..inspection.inspect import Inspection


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 1 if training would refuse the data; 2 for settings that cannot be used; 130 after Ctrl-C.
    """
    parser = _parser(prog)
    try:
        arguments, overrides = parse_arguments(parser, argv)
        if arguments.path:
            overrides["data.path"] = arguments.path[0] if len(arguments.path) == 1 else arguments.path
        config = RunConfig.load(arguments.config, overrides)
        _check(parser, arguments, config)
        setup_logging()
        if (page := _page(arguments)) is not None:
            check_outputs([Output("--html", page, PAGE)], [arguments.config, *config.data.paths])
        inspection = _inspect(config, with_tokens=arguments.config is not None)
    except DataError as error:
        if arguments.json:
            print(json.dumps({"path": config.data.path, "refusal": str(error)}))
        parser.complain(f"training would refuse this data: {error}")
        return 1
    except ConfigError as error:
        parser.complain(error)
        return 2
    command = _training_command(prog, arguments.config, overrides, inspection.changes)
    if arguments.json:
        print(json.dumps(inspection.to_dict() | {"command": command}))
    else:
        print(_text(inspection, command))
    try:
        _write_page(inspection, arguments, config)
    except (OSError, ValueError) as error:
        parser.complain(error)
        return 2
    return int(inspection.refusal is not None)


def _parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description=__doc__, allow_abbrev=False)
    parser.add_argument(
        "path", nargs="*", metavar="PATH", help="the corpus, or several to train on together; the same as --data.path"
    )
    parser.add_argument(
        "--config", help="the YAML file of a training, whose tokenizer counts tokens if it is on this machine"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="the page of random images with their captions (contact_sheet.html; none with --json)",
    )
    parser.add_argument(
        "--samples", type=positive_int, default=24, metavar="N", help="the number of images on the page (24)"
    )
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="the seed that chooses the images (0)")
    add_arguments(parser, ["data"])
    return parser


def _check(parser: ArgumentParser, arguments: argparse.Namespace, config: RunConfig) -> None:
    if not config.data.path:
        parser.error("say where the captioned images are: PATH, or a --config that has data.path")
    if config.data.features is not None:
        parser.error("data.features: this looks at pictures; of vectors, training checks every number")
    if arguments.html and not arguments.html.parent.is_dir():
        parser.error(f"--html: there is no folder {arguments.html.parent}")


def _training_command(
    prog: str, config: str | None, overrides: dict[str, Any], changes: dict[str, Any] | None
) -> str | None:
    """Returns the command that trains on the data as it is; None if there is none."""
    if changes is None:
        return None
    program = ["python", "scripts/train.py"] if prog.endswith(".py") else [prog.split()[0], "train"]
    usual = Path("configs/finetune.yaml")
    config = config or str(usual if usual.exists() else shipped(str(usual)))
    options = [
        word
        for name, value in (overrides | changes).items()
        for word in (f"--{name}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
    ]
    return shlex.join([*program, "--config", config, *options])


def _text(inspection: "Inspection", command: str | None) -> str:
    """Returns the findings, and before the verdict the command that trains on the data."""
    *findings, verdict = str(inspection).split("\nTraining would ", 1)
    lines = [] if command is None else [f"To train on this data as it is: {printable(command)}"]
    return "\n".join([*findings, *lines, f"Training would {verdict}"])


def _inspect(config: RunConfig, with_tokens: bool) -> "Inspection":
    with loading("PyTorch and transformers"):
        from ..data.opening import open_data
        from ..inspection.inspect import inspect_data

    tokenizer, no_tokens = None, "give the --config of the training, for its language model's tokenizer"
    if with_tokens:
        try:
            config, tokenizer = _as_trained(config)
        except BackboneError as error:
            no_tokens = str(error).rstrip(".")
    return inspect_data(open_data(config.data), config.data, config.training.eval_images, tokenizer, no_tokens)


def _as_trained(config: RunConfig) -> "tuple[RunConfig, PreTrainedTokenizerBase]":
    """Returns the config as training takes it, and the tokenizer: those of the checkpoint that it starts from, if any.

    Raises:
        BackboneError: There is no tokenizer on this machine.
        ConfigError, CheckpointError: The config does not fit the checkpoint, or the checkpoint is damaged.
    """
    if config.model.init_from is None:
        from ..inspection.inspect import local_tokenizer

        model = config.model
        return config, local_tokenizer(model.language, model.language_revision, model.tokenizer)
    from ..captioning.checkpoints import find_checkpoint
    from ..towers.processor import CaptionerProcessor
    from ..training.parent import adopt_parent

    config = adopt_parent(config)
    return config, CaptionerProcessor.from_pretrained(find_checkpoint(str(config.model.init_from))).tokenizer


def _page(arguments: argparse.Namespace) -> Path | None:
    return arguments.html or (None if arguments.json else Path("contact_sheet.html"))


def _write_page(inspection: "Inspection", arguments: argparse.Namespace, config: RunConfig) -> None:
    from ..inspection.inspect import write_contact_sheet

    page = _page(arguments)
    if page is None:
        return
    limits = config.data.max_pixels, config.data.max_bytes
    write_contact_sheet(page, inspection, arguments.samples, arguments.seed, *limits)
    if not arguments.json:
        if arguments.html is None:
            print(f"The contact sheet is in {printable(str(Path.cwd()))}; --html gives it another place.")
        print(f"Page: {page}")

"""Runs a command by its name."""

import argparse
import importlib
import sys

from .. import __version__
from ..core.console import ArgumentParser
from ..core.extras import explain_missing

COMMANDS = {
    "caption": "caption images, or vectors",
    "train": "train a captioner",
    "evaluate": "score a checkpoint on captioned images, or captions against references",
    "calibrate": "fit the probability that a caption is right",
    "index": "collect captioned images that help to choose captions",
    "inspect": "look at captioned images before training",
    "export": "export a checkpoint to ONNX, for captioning without torch",
    "serve": "a page and an API for pictures: OpenAI's chat completions",
    "cache": "compute image features before training",
    "demo": "caption eight photos and write a page of them",
}


def main(argv: list[str] | None = None) -> int:
    """Runs `vlm-caption COMMAND ...` and returns the exit code.

    Args:
        argv: The arguments, by default those of the program.
    """
    parser = ArgumentParser(
        prog="vlm-caption",
        description="Image captions from a frozen vision tower and a frozen language model.",
        epilog="\n".join(["commands:", *(f"  {name:10}{meaning}" for name, meaning in COMMANDS.items())]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="vlm-caption COMMAND ...",
    )
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND", help="see below; COMMAND --help lists options")
    parser.add_argument("--version", action="version", version=__version__)
    argv = sys.argv[1:] if argv is None else argv
    command = parser.parse_args(argv[:1]).command
    return run(command, argv[1:], f"vlm-caption {command}")


def run(command: str, argv: list[str] | None, prog: str) -> int:
    """Runs one command and returns the exit code.

    Args:
        command: A key of `COMMANDS`.
        argv: The arguments of the command. With None, those of the program.
        prog: The name of the command as it was called, for messages.

    Returns:
        The exit code of the command; 130 if Ctrl-C stopped it anywhere, also during imports; 2 if it needs a package
        that is not installed.
    """
    try:
        return importlib.import_module(f".{command}", __package__).main(argv, prog)
    except KeyboardInterrupt:
        return 130
    except ModuleNotFoundError as error:
        if (message := explain_missing(error)) is None:
            raise
        ArgumentParser(prog=prog).complain(message)
        return 2

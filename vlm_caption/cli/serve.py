"""Serves a captioner: a page, and an API that speaks OpenAI's chat completions."""

import argparse
import signal
from pathlib import Path
from typing import TYPE_CHECKING, cast

from ..captioning.checkpoints import DEFAULT_CHECKPOINT, find_checkpoint
from ..core.console import ArgumentParser, loading, natural_int, positive_int, setup_logging
from ..core.errors import ConfigError
from ..core.extras import require
from ..core.hub_ids import is_hub_id
from ..runtime.files import is_export
from ..serve.limits import ServingLimits
from .loading import load_captioner

if TYPE_CHECKING:
    from .. import runtime
    from ..captioning.captioner import Captioner

_DEFAULTS = ServingLimits()


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 2 for settings that cannot be used; 130 after Ctrl-C, 143 after SIGTERM.
    """
    parser = _parser(prog)
    arguments = parser.parse_args(argv)
    setup_logging()
    try:
        _serve(arguments)
    except (OSError, RuntimeError, ValueError) as error:
        parser.complain(error)
        return 2
    except KeyboardInterrupt as error:
        return 128 + getattr(error, "signum", signal.SIGINT)
    return 0


def _serve(arguments: argparse.Namespace) -> None:
    require("gradio", "A server")
    with loading("the server"):
        from ..serve.server import listen, serve
        from ..serve.service import Service

    listener = listen(arguments.host, arguments.port)
    limits = ServingLimits(
        max_body=arguments.max_bytes,
        max_pixels=arguments.max_pixels,
        max_waiting=arguments.max_waiting,
        timeout=arguments.timeout,
    )
    name = Path(arguments.checkpoint).resolve().name
    captioner = _load(arguments)
    if arguments.datastore is not None:
        _try_datastore(captioner, arguments.datastore)
    service = Service(captioner, name, limits, arguments.batch_size, arguments.datastore)
    serve(service, listener, arguments.allow_host)


def _load(arguments: argparse.Namespace) -> "Captioner | runtime.Captioner":
    checkpoint = arguments.checkpoint
    if is_export(checkpoint):
        if arguments.device is not None:
            raise ConfigError(f"--device: {checkpoint} is an export, which has no such option: leave it out.")
    elif not is_hub_id(str(checkpoint)):
        find_checkpoint(checkpoint)  # before the slow imports
    captioner = load_captioner(checkpoint, arguments.device)
    if not is_export(checkpoint):
        cast("Captioner", captioner).check_vision_tower()
    return captioner


def _try_datastore(captioner: "Captioner | runtime.Captioner", datastore: str) -> None:
    """Captions a grey picture, so that a datastore that does not fit is refused before the first request.

    Raises:
        DataError: There is none, or it was made with another vision tower.
    """
    from PIL import Image

    captioner.caption(Image.new("RGB", (64, 64), "grey"), datastore=datastore, max_new_tokens=1)


def _parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        description="Serves a captioner: a page, and an API that speaks OpenAI's chat completions.",
        allow_abbrev=False,
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder, an export's too, or a Hub id")
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 or cpu (a GPU, if there is one)")
    parser.add_argument(
        "--datastore",
        metavar="FOLDER",
        help="choose captions by those of similar images, which `vlm-caption index` collected; coco is the datastore "
        "that comes with the package",
    )
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 for other machines too (127.0.0.1)")
    parser.add_argument("--port", type=natural_int, default=8000, metavar="N", help="0 for any that is free (8000)")
    parser.add_argument(
        "--allow-host",
        action="append",
        default=[],
        metavar="NAME",
        help="answer to this name too, such as that of a proxy in front; may be repeated",
    )
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="pictures at a time (8)")
    limits = parser.add_argument_group("limits")
    for option, metavar, default, meaning in (
        ("--max-bytes", "N", _DEFAULTS.max_body, "of a request"),
        ("--max-pixels", "N", _DEFAULTS.max_pixels, "of a picture, width x height"),
        ("--max-waiting", "N", _DEFAULTS.max_waiting, "pictures that wait"),
        ("--timeout", "SECONDS", int(_DEFAULTS.timeout), "until a caption"),
    ):
        shown = f"{meaning} ({default:,})"
        limits.add_argument(option, type=positive_int, default=default, metavar=metavar, help=shown)
    return parser

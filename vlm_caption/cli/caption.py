"""Captions images, or vectors."""

import argparse
import io
import math
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

from ..captioning.checkpoints import DEFAULT_CHECKPOINT, find_checkpoint
from ..captioning.writers import (
    FORMATS,
    ErrorLog,
    OutputFile,
    Sidecars,
    StandardOutput,
    Writer,
    check_sidecars,
    job_outputs,
)
from ..core.console import (
    ArgumentParser,
    loading,
    natural_int,
    positive_int,
    progress,
    quiet_transformers,
    setup_logging,
)
from ..core.errors import ConfigError, ImageError
from ..core.extras import require
from ..core.files import exists
from ..core.hub_ids import is_hub_id
from ..core.outputs import check_outputs
from ..core.prompts import QUESTION
from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..runtime.files import is_export

if TYPE_CHECKING:
    from .. import runtime
    from ..captioning.captioner import Captioner
    from ..data.vectors import Vectors
    from ..images.opening import ImageSource

_DTYPES = ("float32", "bfloat16", "float16")


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 1 if an image has no caption; 2 for settings that cannot be used; 130 after Ctrl-C.
    """
    parser = _parser(prog)
    arguments = parser.parse_args(argv)
    _check_arguments(parser, arguments)
    setup_logging()
    stderr = sys.stderr  # the real one, while transformers is kept quiet
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that lacks a character of a caption
    try:
        with ExitStack() as stack:
            return _caption(parser, arguments, stack, stderr)
    except BrokenPipeError:  # the reader, such as `| head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it closes stdout
        return 1
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        parser.complain(error, stderr)
        return 2


def _caption(parser: ArgumentParser, arguments: argparse.Namespace, stack: ExitStack, stderr: TextIO) -> int:
    errors: list[ImageError] = []
    inputs = _find_inputs(parser, arguments, errors.append)
    check_outputs(job_outputs(arguments.output, arguments.format, arguments.bad_images), _paths(inputs, arguments))
    log = ErrorLog(arguments.bad_images)

    def refuse(error: ImageError) -> None:
        parser.complain(error, stderr)
        log.add(error)
        errors.append(error)

    for error in errors.copy():
        parser.complain(error, stderr)
        log.add(error)
    if not len(inputs):
        return 1
    if arguments.features is None and _all_missing(cast(list[Any], inputs), refuse):
        return 1
    exported = is_export(arguments.checkpoint)
    if exported:
        _check_exported(arguments)
    may_be_done = arguments.sidecars or (arguments.output is not None and exists(arguments.output))
    if not (may_be_done or exported or is_hub_id(str(arguments.checkpoint))):
        find_checkpoint(arguments.checkpoint)  # before the slow imports; a job that is done needs no checkpoint
    from ..captioning.job import CaptionJob

    writers = _writers(arguments, stack, named=len(inputs) > 1 or len(arguments.images) > 1)
    job = CaptionJob(inputs, writers, arguments.batch_size)
    if job.num_done:
        holder = f"{arguments.output} has" if arguments.output else "the files beside the pictures have"
        parser.complain(f"{holder} {job.num_done} of these captions", stderr)
    if job.num_left:
        captioner = _load_exported(arguments) if exported else _load(arguments)
        if not exported:
            stack.enter_context(quiet_transformers())
        steps = job.run(captioner, refuse, **_settings(captioner, arguments))
        if not isinstance(writers[0], StandardOutput):
            steps = progress(steps, job.num_left, "captions", stderr)
        for _ in steps:
            pass
    job.finish()
    return int(bool(errors))


def _check_exported(arguments: argparse.Namespace) -> None:
    """Checks that the options are those of an exported captioner.

    Raises:
        ConfigError: One of them needs torch.
    """
    for option in ("device", "dtype", "features"):
        if getattr(arguments, option) is not None:
            raise ConfigError(
                f"--{option}: {arguments.checkpoint} is an export, which has no such option: leave it out."
            )


def _load_exported(arguments: argparse.Namespace) -> "runtime.Captioner":
    require("onnxruntime", "An exported captioner")
    from ..runtime.captioner import Captioner

    with loading(f"the export {arguments.checkpoint}"):
        return Captioner.from_pretrained(arguments.checkpoint)


def _load(arguments: argparse.Namespace) -> "Captioner":
    with loading("PyTorch and transformers"):
        torch = require("torch", "A checkpoint that is not exported")
        from ..captioning.captioner import Captioner

    dtype = None if arguments.dtype is None else getattr(torch, arguments.dtype)
    with loading(f"the checkpoint {arguments.checkpoint}"):
        return Captioner.from_pretrained(arguments.checkpoint, arguments.device, dtype)


def _all_missing(pictures: "list[Any]", refuse: Callable[[ImageError], None]) -> bool:
    """Whether no picture exists. Each is then refused, without loading the model."""
    if any(not isinstance(picture, Path) or exists(picture) for picture in pictures):
        return False
    from ..images.opening import open_image

    for picture in pictures:
        try:
            open_image(picture)
        except ImageError as error:
            refuse(error)
    return True


def _find_inputs(
    parser: ArgumentParser, arguments: argparse.Namespace, on_error: Callable[[ImageError], None]
) -> "Sequence[ImageSource] | Vectors":
    if arguments.features is not None:
        from ..data.vectors import open_vectors

        return open_vectors(arguments.features, arguments.feature_column)
    from ..captioning.inputs import find_pictures
    from ..images.finding import PassedOver
    from ..images.opening import describe

    stdin = sys.stdin.buffer if "-" in arguments.images else None
    passed_over = PassedOver()
    pictures = find_pictures(arguments.images, on_error, stdin, passed_over)
    if str(passed_over):
        parser.complain(str(passed_over))
    if not arguments.sidecars:
        return pictures
    unusable = check_sidecars(list(map(describe, pictures)))
    for error in unusable.values():
        on_error(error)
    return [picture for picture in pictures if describe(picture) not in unusable]


def _paths(inputs: "Sequence[ImageSource] | Vectors", arguments: argparse.Namespace) -> list[str | None]:
    """Returns all files that are read, as far as they are files."""
    named = [name.removeprefix("@") for name in arguments.images]
    pictures: list[Any] = cast(list[Any], inputs) if arguments.features is None else []
    return [
        *named,
        *(str(item) for item in pictures if isinstance(item, Path)),
        arguments.features,
        *(image for image, _ in arguments.example),
    ]


def _writers(arguments: argparse.Namespace, stack: ExitStack, named: bool) -> list[Writer]:
    writers: list[Writer] = []
    if arguments.output is not None:
        writers.append(OutputFile(arguments.output, arguments.format))
    if arguments.sidecars:
        writers.append(Sidecars(arguments.prefix, arguments.suffix, arguments.append, arguments.overwrite))
    if not writers:
        writers.append(StandardOutput(arguments.format, named or arguments.features is not None))
    for writer in writers:
        stack.callback(writer.close)
    return writers


def _settings(captioner: "Captioner | runtime.Captioner", arguments: argparse.Namespace) -> dict[str, Any]:
    """Returns the arguments of `caption_each` that the options give.

    Raises:
        ConfigError: A question is asked of a checkpoint that was not trained on questions.
    """
    if arguments.question is not None and QUESTION not in (arguments.prompt or captioner.prompt):
        raise ConfigError(
            f"--question: {arguments.checkpoint} was not trained on questions: leave it out, or give a --prompt with "
            f"{QUESTION}."
        )
    names = [option.lstrip("-").replace("-", "_") for option in _DECODING]
    settings = {name: getattr(arguments, name) for name in names}
    settings["num_return_sequences"] = settings.pop("num_captions")
    if settings.pop("sample"):
        settings |= {"do_sample": True, "num_beams": arguments.num_beams or 1}
    if arguments.features is None:
        settings |= {"max_pixels": arguments.max_pixels, "max_bytes": arguments.max_bytes}
        settings["examples"] = [(image, caption) for image, caption in arguments.example]
    return settings | {"prompt": arguments.prompt, "question": arguments.question}


def _check_arguments(parser: ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program where options do not go together, and fills in the format."""
    if bool(arguments.images) == (arguments.features is not None):
        parser.error("give pictures to caption, or --features FILE, and not both")
    if arguments.example and arguments.features is not None:
        parser.error("--example shows pictures, and --features has none: leave one out")
    if arguments.sidecars and arguments.features is not None:
        parser.error("--sidecars writes beside pictures, and --features has none: leave one out")
    for option in ("prefix", "suffix", "append", "overwrite"):
        if getattr(arguments, option) and not arguments.sidecars:
            parser.error(f"--{option} needs --sidecars")
    if arguments.append and arguments.overwrite:
        parser.error("--append and --overwrite exclude each other")
    for option in ("temperature", "top_p", "seed"):
        if getattr(arguments, option) is not None and not arguments.sample:
            parser.error(f"--{option.replace('_', '-')} needs --sample")
    if arguments.output == Path("-"):
        arguments.output = None
    if arguments.output is None:
        arguments.format = arguments.format or "text"
        if arguments.format in ("parquet", "coco"):
            parser.error(f"--format {arguments.format} needs --output FILE")
        return
    by_name = {".csv": "csv", ".parquet": "parquet"}.get(arguments.output.suffix.lower(), "json")
    arguments.format = arguments.format or by_name
    if arguments.format == "text":
        parser.error("--format text is for standard output, and --output keeps captions: take another format")


def _parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description="Writes a caption for each picture.", allow_abbrev=False)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="a picture, its URL, a folder, a quoted glob, a zip or tar archive, a Parquet file, @FILE with a name in "
        "each line, or - for such a list on standard input",
    )
    parser.add_argument("--features", metavar="FILE", help="caption the vectors in a .npy, .safetensors or .parquet")
    parser.add_argument("--feature-column", metavar="NAME", help="of a .parquet file with several columns of vectors")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id")
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 or cpu (a GPU, if there is one)")
    parser.add_argument("--dtype", choices=_DTYPES, help="of the weights (as they were saved)")
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="pictures at a time (8)")
    parser.add_argument("--max-pixels", type=positive_int, default=MAX_PIXELS, metavar="N", help="width x height")
    parser.add_argument("--max-bytes", type=positive_int, default=MAX_BYTES, metavar="N", help="of a picture's file")
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument(
        "--prompt", default="", help="text around the picture, which may say <image>; default: as in training"
    )
    prompt.add_argument("--question", metavar="TEXT", help="what fills the prompt's {question}")
    prompt.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "CAPTION"),
        help="show this picture with its caption before each; may be repeated",
    )
    _add_outputs(parser)
    decoding = parser.add_argument_group("decoding", "The defaults are those of the checkpoint.")
    for option, settings in _DECODING.items():
        decoding.add_argument(option, **settings)
    return parser


def _add_outputs(parser: ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=FORMATS,
        help="text (on standard output), json: an object a line, csv, parquet, or coco: COCO's results; by default as "
        "the name of --output ends, or json",
    )
    output.add_argument(
        "--output",
        type=_path,
        metavar="FILE",
        help="keep captions there, and leave out pictures that it has: a stopped job resumes; -: standard output",
    )
    output.add_argument("--bad-images", type=_path, metavar="FILE", help="JSON lines of what has no caption, and why")
    output.add_argument("--sidecars", action="store_true", help="write NAME.txt beside each picture that has none")
    output.add_argument("--prefix", default="", metavar="TEXT", help="in front of each caption in NAME.txt")
    output.add_argument("--suffix", default="", metavar="TEXT", help="behind each caption in NAME.txt")
    output.add_argument("--append", action="store_true", help="add the caption to a NAME.txt that is there")
    output.add_argument("--overwrite", action="store_true", help="replace a NAME.txt that is there")


def _path(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("give the name of a file, and not an empty one")
    return Path(text)


def _positive(text: str) -> float:
    if (number := _number(text)) <= 0:
        raise argparse.ArgumentTypeError(f"give a number above 0, not {text!r}")
    return number


def _share(text: str) -> float:
    if not 0 < (number := _number(text)) <= 1:
        raise argparse.ArgumentTypeError(f"give a number above 0 and at most 1, not {text!r}")
    return number


def _number(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise argparse.ArgumentTypeError(f"give a number, not {text!r}")
    return number


# The options of decoding. They are called as in transformers' `generate`, but for the first two.
_DECODING: dict[str, dict[str, Any]] = {
    "--num-captions": {"type": positive_int, "metavar": "N", "help": "captions of each picture (1)"},
    "--sample": {"action": "store_true", "help": "draw the words at random instead of searching for the best"},
    "--temperature": {"type": _positive, "metavar": "X", "help": "of sampling: above 1 more varied, below 1 less"},
    "--top-p": {"type": _share, "metavar": "X", "help": "draw from the likeliest words of this total probability"},
    "--seed": {"type": natural_int, "metavar": "N", "help": "draw the same words every time"},
    "--num-beams": {"type": positive_int, "metavar": "N", "help": "of beam search; 1 is greedy"},
    "--length-penalty": {
        "type": _number,
        "metavar": "X",
        "help": "of beams: above 0 for longer, below for shorter",
    },
    "--max-new-tokens": {"type": positive_int, "metavar": "N", "help": "the longest caption"},
    "--min-new-tokens": {"type": positive_int, "metavar": "N", "help": "the shortest caption"},
    "--max-words": {"type": positive_int, "metavar": "N", "help": "cut captions behind that many words"},
    "--no-repeat-ngram-size": {"type": positive_int, "metavar": "N", "help": "no run of N tokens twice"},
    "--repetition-penalty": {"type": _positive, "metavar": "X", "help": "above 1: words seldom come twice"},
    "--ban": {"action": "append", "metavar": "WORD", "help": "never write this word; may be repeated"},
    "--stop": {"action": "append", "metavar": "TEXT", "help": "end captions before this text; may be repeated"},
}

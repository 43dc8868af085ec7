"""The options of `caption`, and which of them go together."""

import argparse
import math
import sys
from pathlib import Path
from typing import Any

from ..captioning.checkpoints import DEFAULT_CHECKPOINT
from ..captioning.writers import FORMATS
from ..core.console import ArgumentParser, natural_int, positive_int
from ..images.limits import MAX_BYTES, MAX_PIXELS

_STDOUT = Path("-")

_ENGINES = ("process", "ray")

_DTYPES = ("float32", "bfloat16", "float16")


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


# The options of decoding. They are called as in transformers' `generate`, but for the first five.
DECODING: dict[str, dict[str, Any]] = {
    "--num-captions": {"type": positive_int, "metavar": "N", "help": "the number of captions of each picture (1)"},
    "--consensus": {
        "type": positive_int,
        "metavar": "N",
        "help": "write N captions of each picture, and keep those that agree most with the others",
    },
    "--consensus-captions": {
        "metavar": "FILE",
        "help": "captions, one per line, that give word frequencies for --consensus (a file of the checkpoint)",
    },
    "--datastore": {
        "metavar": "FOLDER",
        "help": "keep the captions that agree most with those of similar images, which `vlm-caption index` collected; "
        "coco is the datastore that comes with the package",
    },
    "--sample": {"action": "store_true", "help": "sample tokens instead of searching for the best ones"},
    "--temperature": {"type": _positive, "metavar": "X", "help": "for sampling: above 1 more varied, below 1 less"},
    "--top-p": {
        "type": _share,
        "metavar": "X",
        "help": "sample from the most probable tokens of this total probability",
    },
    "--seed": {"type": natural_int, "metavar": "N", "help": "sample the same tokens every time"},
    "--num-beams": {"type": positive_int, "metavar": "N", "help": "the number of beams; 1 is greedy search"},
    "--length-penalty": {
        "type": _number,
        "metavar": "X",
        "help": "for beam search: above 0 favours longer captions, below 0 shorter ones",
    },
    "--max-new-tokens": {"type": positive_int, "metavar": "N", "help": "the greatest length of a caption, in tokens"},
    "--min-new-tokens": {"type": positive_int, "metavar": "N", "help": "the least length of a caption, in tokens"},
    "--max-words": {"type": positive_int, "metavar": "N", "help": "cut captions after N words"},
    "--no-repeat-ngram-size": {"type": positive_int, "metavar": "N", "help": "generate no sequence of N tokens twice"},
    "--repetition-penalty": {
        "type": _positive,
        "metavar": "X",
        "help": "above 1: generated tokens become less likely to repeat",
    },
    "--ban": {"action": "append", "metavar": "WORD", "help": "never write this word; may be repeated"},
    "--stop": {"action": "append", "metavar": "TEXT", "help": "end captions before this text; may be repeated"},
}


def caption_parser(prog: str) -> ArgumentParser:
    """Returns the parser of the command, which is called `prog` in messages."""
    parser = ArgumentParser(prog=prog, description="Captions pictures, or vectors.", allow_abbrev=False)
    parser.add_argument(
        "images",
        nargs="*",
        metavar="IMAGE",
        help="a picture, its URL, a folder, a quoted glob, a zip or tar archive, a Parquet file, @FILE with a name in "
        "each line, or - for such a list on standard input",
    )
    parser.add_argument("--config", metavar="FILE", help="caption the pictures of the corpus in this YAML file")
    parser.add_argument("--split", metavar="NAME", help="only this split of the corpus (all)")
    parser.add_argument("--features", metavar="FILE", help="caption the vectors in a .npy, .safetensors or .parquet")
    parser.add_argument(
        "--feature-column", metavar="NAME", help="the column, in a .parquet with several columns of vectors"
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id (checkpoints/embedded)")
    parser.add_argument("--device", metavar="NAME", help="such as cuda:1 or cpu (a GPU, if there is one)")
    parser.add_argument("--dtype", choices=_DTYPES, help="the dtype of the weights (as they were saved)")
    parser.add_argument(
        "--batch-size", type=positive_int, default=8, metavar="N", help="the number of pictures in a batch (8)"
    )
    parser.add_argument(
        "--max-pixels", type=positive_int, metavar="N", help=f"largest width x height ({MAX_PIXELS:,})"
    )
    parser.add_argument(
        "--max-bytes", type=positive_int, metavar="N", help=f"largest file of a picture ({MAX_BYTES:,})"
    )
    _add_engine(parser)
    prompt = parser.add_argument_group("prompt")
    prompt.add_argument(
        "--prompt",
        action="append",
        help="text around the picture, with <image> in its place (as in training); may be repeated",
    )
    prompt.add_argument(
        "--question", metavar="TEXT", action="append", help="text for {question} in the prompt; may be repeated"
    )
    prompt.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "CAPTION"),
        help="an example to show before each picture; may be repeated",
    )
    _add_outputs(parser)
    decoding = parser.add_argument_group("decoding", "The defaults are those of the checkpoint.")
    for option, settings in DECODING.items():
        decoding.add_argument(option, **settings)
    return parser


def _add_engine(parser: ArgumentParser) -> None:
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--engine",
        choices=_ENGINES,
        default=_ENGINES[0],
        help="what captions: this process, or actors of Ray, on this machine or on the cluster of RAY_ADDRESS",
    )
    engine.add_argument("--actors", type=positive_int, metavar="N", help="of Ray (as many as it has room for)")
    engine.add_argument("--actor-threads", type=positive_int, metavar="N", help="of each actor, and its cores (1)")


def _add_outputs(parser: ArgumentParser) -> None:
    output = parser.add_argument_group("output")
    output.add_argument(
        "--format",
        choices=FORMATS,
        help="text (on standard output only), json (JSON lines), csv, parquet, or coco (COCO's results); by default "
        "text, and for --output as its name ends, or json",
    )
    output.add_argument(
        "--output",
        type=_path,
        metavar="FILE",
        help="the file for captions; a repeated command leaves out pictures in it, and resumes; -: standard output",
    )
    output.add_argument(
        "--bad-images",
        type=_path,
        metavar="FILE",
        help="a file for JSON lines of the pictures without a caption, and why",
    )
    output.add_argument(
        "--min-confidence",
        type=_share,
        metavar="P",
        help="captions below this probability of being right go to --review instead",
    )
    output.add_argument(
        "--review", type=_path, metavar="FILE", help="the file for captions below --min-confidence, JSON lines"
    )
    output.add_argument("--no-confidence", action="store_true", help="do not compute confidences, which saves time")
    output.add_argument("--sidecars", action="store_true", help="write NAME.txt beside each picture without one")
    output.add_argument("--xmp", action="store_true", help="write the XMP description into each picture without one")
    output.add_argument(
        "--prefix", default="", metavar="TEXT", help="written before each caption of --sidecars and --xmp"
    )
    output.add_argument(
        "--suffix", default="", metavar="TEXT", help="written after each caption of --sidecars and --xmp"
    )
    output.add_argument("--append", action="store_true", help="add the caption to an existing text")
    output.add_argument("--overwrite", action="store_true", help="replace an existing text")


def check_arguments(parser: ArgumentParser, arguments: argparse.Namespace) -> None:
    """Ends the program where options do not go together, and fills in the format."""
    if [bool(arguments.images), arguments.features is not None, arguments.config is not None].count(True) != 1:
        parser.error("give pictures to caption, --features FILE or --config FILE, and only one of these")
    if arguments.split is not None and arguments.config is None:
        parser.error("--split needs --config")
    if arguments.example and arguments.features is not None:
        parser.error("--example shows pictures, and --features has none: leave one out")
    if arguments.engine == "ray" and arguments.features is not None:
        parser.error("--engine ray captions pictures, and --features has none: leave one out")
    for option in ("actors", "actor_threads"):
        if getattr(arguments, option) is not None and arguments.engine != "ray":
            parser.error(f"--{option.replace('_', '-')} needs --engine ray")
    for option in ("sidecars", "xmp"):
        if getattr(arguments, option) and arguments.features is not None:
            parser.error(f"--{option} writes beside or into pictures, and --features has none: leave one out")
    for option in ("prefix", "suffix", "append", "overwrite"):
        if getattr(arguments, option) and not (arguments.sidecars or arguments.xmp):
            parser.error(f"--{option} needs --sidecars or --xmp")
    if arguments.append and arguments.overwrite:
        parser.error("--append and --overwrite exclude each other")
    if arguments.consensus_captions is not None and arguments.consensus is None:
        parser.error("--consensus-captions needs --consensus")
    if (arguments.min_confidence is None) != (arguments.review is None):
        parser.error("--min-confidence and --review go together")
    if arguments.no_confidence and arguments.min_confidence is not None:
        parser.error("--min-confidence needs confidences, and --no-confidence leaves them out: leave one out")
    for option in ("temperature", "top_p", "seed"):
        if getattr(arguments, option) is not None and not arguments.sample:
            parser.error(f"--{option.replace('_', '-')} needs --sample")
    _check_format(parser, arguments)


def _check_format(parser: ArgumentParser, arguments: argparse.Namespace) -> None:
    if arguments.format is not None and arguments.output is None:
        arguments.output = _STDOUT
    if keeps_captions(arguments):
        by_name = {".csv": "csv", ".parquet": "parquet"}.get(arguments.output.suffix.lower(), "json")
        arguments.format = arguments.format or by_name
        if arguments.format == "text":
            parser.error("--format text is for standard output, and --output keeps captions: take another format")
    arguments.format = arguments.format or "text"
    if arguments.format == "parquet" and not keeps_captions(arguments) and sys.stdout.isatty():
        parser.error("--format parquet is not for a terminal: give --output FILE")
    counts = (arguments.num_captions or 1, len(arguments.prompt or "1"), len(arguments.question or "1"))
    if arguments.format == "coco" and max(counts) > 1:
        parser.error("--format coco has one caption for each picture: take another format")


def keeps_captions(arguments: argparse.Namespace) -> bool:
    """Whether captions are kept in a file of their own."""
    return arguments.output not in (None, _STDOUT)

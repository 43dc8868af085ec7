"""Captions images, or vectors."""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..captioning.caption_file import CaptionFile, as_line
from ..captioning.checkpoints import DEFAULT_CHECKPOINT, find_checkpoint
from ..core.console import (
    ArgumentParser,
    loading,
    positive_int,
    printable,
    progress,
    quiet_transformers,
    setup_logging,
)
from ..core.errors import ImageError
from ..core.hub_ids import is_hub_id
from ..images.limits import MAX_BYTES, MAX_PIXELS

if TYPE_CHECKING:
    from ..captioning.captioner import Caption, Captioner
    from ..data.vectors import Vectors


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
    if bool(arguments.images) == (arguments.features is not None):
        parser.error("give pictures to caption, or --features FILE, and not both")
    if arguments.example and arguments.features is not None:
        parser.error("--example shows pictures, and --features has none: leave one out")
    setup_logging()
    try:
        with (arguments.bad_images or Path(os.devnull)).open("w", encoding="utf-8", errors="replace") as bad:
            return _Job(parser, arguments, bad).run()
    except BrokenPipeError:  # the reader, such as `| head`, has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it closes stdout
        return 1
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        parser.complain(error)
        return 2


class _Job:
    """The images or vectors of one call.

    Args:
        parser: The parser, for its messages.
        arguments: What it parsed.
        bad: The file for images without a caption.
    """

    def __init__(self, parser: ArgumentParser, arguments: argparse.Namespace, bad: TextIO) -> None:
        self.parser = parser
        self.arguments = arguments
        self.bad = bad
        self.failed = False
        self.stderr = sys.stderr  # the real one, while transformers is kept quiet

    def run(self) -> int:
        """Writes the captions and returns the exit code."""
        from ..images.finding import find_images

        arguments = self.arguments
        pictures = find_images(arguments.images, self._refuse)
        if not pictures and arguments.features is None:
            return 1
        if pictures and all(isinstance(picture, Path) and not picture.exists() for picture in pictures):
            self._refuse_missing(pictures)  # without loading the model
            return 1
        named = len(pictures) > 1 or len(arguments.images) > 1 or arguments.features is not None
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="backslashreplace")  # for a terminal that lacks a character of a caption
        with ExitStack() as stack:
            vectors, kept = None, None
            if arguments.features is not None:
                from ..data.vectors import open_vectors

                vectors = open_vectors(arguments.features, arguments.feature_column)
            if arguments.output is not None:
                kept = stack.enter_context(CaptionFile(arguments.output))
                pictures, vectors, count = _without(kept.done, pictures, vectors)
                if count:
                    self.parser.complain(f"{arguments.output} has {count} of these captions", self.stderr)
            captioner = _load(arguments.checkpoint)
            stack.enter_context(quiet_transformers())
            results = _captions(captioner, pictures, vectors, arguments)
            if kept is not None:
                results = progress(results, len(pictures if vectors is None else vectors), "captions", self.stderr)
            for result in results:
                if isinstance(result, ImageError):
                    self._refuse(result)
                elif kept is not None:
                    kept.add(result)
                else:
                    print(_line(result, arguments.format, named), flush=True)
        return int(self.failed)

    def _refuse_missing(self, pictures: list) -> None:
        from ..images.opening import open_image

        for picture in pictures:
            try:
                open_image(picture)
            except ImageError as error:
                self._refuse(error)

    def _refuse(self, error: ImageError) -> None:
        self.failed = True
        self.parser.complain(error, self.stderr)
        entry = {"file": error.source, "reason": error.reason}
        print(json.dumps(entry, ensure_ascii=False), file=self.bad, flush=True)


def _parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(prog=prog, description="Writes a caption for each picture.", allow_abbrev=False)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="a picture, its URL, or a folder of pictures")
    parser.add_argument("--features", metavar="FILE", help="caption the vectors in a .npy, .safetensors or .parquet")
    parser.add_argument("--feature-column", metavar="NAME", help="the column of a .parquet file that has several")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: one object per line")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="write captions there, one JSON object per line, and skip pictures that it has: run again to resume",
    )
    parser.add_argument(
        "--prompt", default="", help="text around the picture, which may contain <image>; default: as in training"
    )
    parser.add_argument("--question", metavar="TEXT", help="the question for the prompt's {question}")
    parser.add_argument(
        "--example",
        nargs=2,
        action="append",
        default=[],
        metavar=("IMAGE", "CAPTION"),
        help="show this picture with its caption before each; may be repeated",
    )
    parser.add_argument("--num-beams", type=positive_int, metavar="N", help="default: the checkpoint's")
    parser.add_argument("--max-new-tokens", type=positive_int, metavar="N", help="default: the checkpoint's")
    parser.add_argument("--batch-size", type=positive_int, default=8, metavar="N", help="pictures at a time (8)")
    parser.add_argument("--max-pixels", type=positive_int, default=MAX_PIXELS, metavar="N", help="width x height")
    parser.add_argument("--max-bytes", type=positive_int, default=MAX_BYTES, metavar="N", help="size of the file")
    parser.add_argument(
        "--bad-images", type=Path, metavar="FILE", help="write pictures without a caption there, with the reasons"
    )
    return parser


def _load(checkpoint: str | Path) -> "Captioner":
    with loading("PyTorch and transformers"):
        if not is_hub_id(str(checkpoint)):
            find_checkpoint(checkpoint)  # before the slow import
        from ..captioning.captioner import Captioner
    with loading(f"the checkpoint {checkpoint}"):
        return Captioner.from_pretrained(checkpoint)


def _without(done: set[str], pictures: list, vectors: "Vectors | None") -> "tuple[list, Vectors | None, int]":
    """Returns what has no caption yet, and the number of those that have one."""
    from ..images.opening import describe

    if vectors is not None:
        names = [vectors.name(row) for row in range(len(vectors))]
        left = [name for name in names if name not in done]
        return [], vectors.select(left), len(names) - len(left)
    left = [picture for picture in pictures if describe(picture) not in done]
    return left, None, len(pictures) - len(left)


def _captions(
    captioner: "Captioner", pictures: list, vectors: "Vectors | None", arguments: argparse.Namespace
) -> "Iterator[Caption | ImageError]":
    names = ("prompt", "question", "batch_size", "num_beams", "max_new_tokens")
    settings: dict[str, Any] = {name: getattr(arguments, name) for name in names}
    if vectors is not None:
        return captioner.caption_vectors(vectors, **settings)
    return captioner.caption_each(
        pictures,
        examples=[(image, caption) for image, caption in arguments.example],
        max_pixels=arguments.max_pixels,
        max_bytes=arguments.max_bytes,
        **settings,
    )


def _line(caption: "Caption", output_format: str, named: bool) -> str:
    if output_format == "json":
        return as_line(caption).rstrip("\n")
    return printable(f"{caption.image}: {caption.text}" if named else caption.text)

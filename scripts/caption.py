"""Captions pictures, or vectors: `python scripts/caption.py photo.jpg [more pictures or folders]`."""

import argparse
import io
import json
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from vlm_caption.captioning.caption_file import CaptionFile, as_line
from vlm_caption.captioning.captioner import DEFAULT_CHECKPOINT, Caption, Captioner
from vlm_caption.core.console import ArgumentParser, positive_int, progress, quiet_transformers, setup_logging
from vlm_caption.core.errors import ImageError
from vlm_caption.data import Vectors, open_vectors
from vlm_caption.images.finding import PassedOver, find_images
from vlm_caption.images.opening import MAX_BYTES, MAX_PIXELS, describe


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if a picture has no caption; 2 for settings that cannot be used."""
    parser = _parser()
    arguments = parser.parse_args(argv)
    if bool(arguments.images) == (arguments.features is not None):
        parser.error("give pictures to caption, or --features FILE, and not both")
    if arguments.example and arguments.features is not None:
        parser.error("--example shows pictures, and --features has none: leave one out")
    setup_logging()
    stderr = sys.stderr  # the real one, while transformers is kept quiet

    def complain(error: Exception) -> None:
        print(f"caption.py: {error}", file=stderr, flush=True)

    try:
        bad = (arguments.bad_images or Path(os.devnull)).open("w", encoding="utf-8", errors="replace")
    except OSError as error:
        complain(error)
        return 2

    failed = False

    def refuse(error: ImageError) -> None:
        nonlocal failed
        failed = True
        complain(error)
        print(json.dumps({"file": error.source, "reason": error.reason}, ensure_ascii=False), file=bad, flush=True)

    passed_over = PassedOver()
    pictures = find_images(arguments.images, refuse, passed_over)
    if str(passed_over):
        print(f"caption.py: {passed_over}", file=stderr, flush=True)
    if not pictures and arguments.features is None:
        return 1
    named = len(pictures) > 1 or len(arguments.images) > 1 or arguments.features is not None
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # a file name may hold bytes that are no text
    kept: CaptionFile | None = None
    try:
        with ExitStack() as stack:
            stack.enter_context(quiet_transformers())
            vectors = None
            if arguments.features is not None:
                vectors = open_vectors(arguments.features, arguments.feature_column)
            if arguments.output is not None:
                kept = stack.enter_context(CaptionFile(arguments.output))
                pictures, vectors, there = _without(kept.done, pictures, vectors)
                if there:
                    print(f"caption.py: {arguments.output} has {there} of these captions", file=stderr, flush=True)
            captioner = Captioner.from_pretrained(arguments.checkpoint)
            results = _captions(captioner, pictures, vectors, arguments)
            if kept is not None:
                results = progress(results, len(pictures if vectors is None else vectors), "captions", stderr)
            for result in results:
                if isinstance(result, ImageError):
                    refuse(result)
                elif kept is not None:
                    kept.add(result)
                else:
                    print(_line(result, arguments.format, named), flush=True)
    except BrokenPipeError:  # `| head` has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # else Python complains as it closes stdout
        return 1
    except KeyboardInterrupt:
        return 130
    except (OSError, RuntimeError, ValueError) as error:
        complain(error)
        return 2
    return int(failed)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="caption.py", description="Writes a caption for each picture.", allow_abbrev=False)
    parser.add_argument("images", nargs="*", metavar="IMAGE", help="a picture, its URL, or a folder of pictures")
    parser.add_argument("--features", metavar="FILE", help="caption the vectors in a .npy, .safetensors or .parquet")
    parser.add_argument("--feature-column", metavar="NAME", help="of a .parquet file with several columns of vectors")
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id")
    parser.add_argument("--format", choices=("text", "json"), default="text", help="json: an object a line")
    parser.add_argument(
        "--output",
        type=Path,
        metavar="FILE",
        help="keep captions there, an object a line, and leave out pictures that it has: a stopped job goes on",
    )
    parser.add_argument(
        "--prompt", default="", help="text around the picture, which may say <image>; default: as in training"
    )
    parser.add_argument("--question", metavar="TEXT", help="what fills the prompt's {question}")
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
    parser.add_argument("--max-bytes", type=positive_int, default=MAX_BYTES, metavar="N", help="of a picture's file")
    parser.add_argument("--bad-images", type=Path, metavar="FILE", help="JSON lines of what has no caption, and why")
    return parser


def _without(done: set[str], pictures: list, vectors: Vectors | None) -> tuple[list, Vectors | None, int]:
    """What has no caption yet, and how many have one."""
    if vectors is not None:
        names = [vectors.name(row) for row in range(len(vectors))]
        left = [name for name in names if name not in done]
        return [], vectors.select(left), len(names) - len(left)
    left = [picture for picture in pictures if describe(picture) not in done]
    return left, None, len(pictures) - len(left)


def _captions(
    captioner: Captioner, pictures: list, vectors: Vectors | None, arguments: argparse.Namespace
) -> Iterator[Caption | ImageError]:
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


def _line(caption: Caption, output_format: str, named: bool) -> str:
    if output_format == "json":
        return as_line(caption).rstrip("\n")
    return f"{caption.image}: {caption.text}" if named else caption.text


if __name__ == "__main__":
    sys.exit(main())

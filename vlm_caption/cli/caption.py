"""Captions images, or vectors."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from ..captioning.beside import Descriptions, Sidecars, Wording
from ..captioning.checkpoints import find_checkpoint
from ..captioning.columns import COLUMNS, columns_of
from ..captioning.writers import (
    ErrorLog,
    OutputFile,
    StandardOutput,
    StandardTable,
    Writer,
    job_outputs,
)
from ..core.console import (
    ArgumentParser,
    loading,
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
from .caption_options import DECODING, caption_parser, check_arguments, keeps_captions
from .loading import load_captioner, named_dtype

if TYPE_CHECKING:
    from .. import runtime
    from ..captioning.captioner import Captioner
    from ..captioning.review import Review
    from ..config.run_config import RunConfig
    from ..data.vectors import Vectors
    from ..images.opening import ImageSource
    from ..scale.ray_captioner import RayCaptioner

    AnyCaptioner = Captioner | runtime.Captioner | RayCaptioner


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 1 if an image has no caption; 2 for settings that cannot be used; 130 after Ctrl-C.
    """
    parser = caption_parser(prog)
    arguments = parser.parse_args(argv)
    check_arguments(parser, arguments)
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
    config = _load_config(arguments)
    inputs, questions = _find_inputs(parser, arguments, config, errors.append)
    kept = arguments.output if keeps_captions(arguments) else None
    files = job_outputs(kept, arguments.format, arguments.bad_images, arguments.review)
    check_outputs(files, _paths(inputs, arguments))
    log = ErrorLog(arguments.bad_images)

    def refuse(error: ImageError) -> None:
        parser.complain(error, stderr)
        log.add(error)
        errors.append(error)

    for error in errors.copy():
        parser.complain(error, stderr)
        log.add(error)
    if not len(inputs):
        if not errors:
            raise ConfigError("There are no pictures to caption: the list is empty.")
        return 1
    if isinstance(inputs, list) and _all_missing(inputs, refuse):
        return 1
    exported = is_export(arguments.checkpoint)
    if exported:
        _check_exported(arguments, inputs)
    may_be_done = arguments.sidecars or arguments.xmp or (kept is not None and exists(kept))
    if not (may_be_done or exported or is_hub_id(str(arguments.checkpoint))):
        find_checkpoint(arguments.checkpoint)  # before the slow imports; a job that is done needs no checkpoint
    from ..captioning.job import CaptionJob

    writers = _writers(arguments, named=len(inputs) > 1 or len(arguments.images) > 1, has_prompts=bool(questions))
    for writer in writers:
        stack.callback(writer.close)
    review = _review(arguments)
    if review is not None:
        stack.callback(review.output.close)
    job = CaptionJob(inputs, writers, arguments.batch_size, review)
    if job.num_done:
        beside = "the pictures have" if arguments.xmp else "the files beside the pictures have"
        holder = beside if kept is None else f"{kept} has"
        parser.complain(f"{holder} {job.num_done} of these captions", stderr)
    if job.num_left:
        captioner = _load(arguments, stack)
        _choose_confidence(captioner, arguments, any(writer.needs_checkpoint for writer in writers))
        if not exported:
            stack.enter_context(quiet_transformers())
        steps = job.run(captioner, refuse, **_settings(captioner, arguments, config, inputs, questions))
        if not any(isinstance(writer, StandardOutput) for writer in writers):
            steps = progress(steps, job.num_left, "captions", stderr)
        for _ in steps:
            pass
    job.finish()
    if review is not None:
        parser.complain(f"{arguments.review} has {review.count} of {len(inputs)} pictures to review", stderr)
    return int(bool(errors))


def _check_exported(arguments: argparse.Namespace, inputs: "Sequence[ImageSource] | Vectors") -> None:
    """Checks that the options are those of an exported captioner.

    Raises:
        ConfigError: One of them needs torch.
    """
    if not isinstance(inputs, list) and arguments.features is None:
        raise ConfigError(
            f"--config: {arguments.checkpoint} is an export, which takes no vectors: leave data.features out, or give "
            "a checkpoint that is not exported."
        )
    for option in ("device", "dtype", "features"):
        if getattr(arguments, option) is not None:
            raise ConfigError(
                f"--{option.replace('_', '-')}: {arguments.checkpoint} is an export, which has no such option: leave "
                "it out."
            )


def _load(arguments: argparse.Namespace, stack: ExitStack) -> "AnyCaptioner":
    if arguments.engine == "ray":
        return stack.enter_context(_load_ray(arguments))
    return load_captioner(arguments.checkpoint, arguments.device, arguments.dtype)


def _load_ray(arguments: argparse.Namespace) -> "RayCaptioner":
    require("ray", "--engine ray")
    from ..scale.ray_captioner import RayCaptioner

    with loading("the checkpoint, and Ray"):
        return RayCaptioner.from_pretrained(
            arguments.checkpoint,
            arguments.device,
            None if is_export(arguments.checkpoint) else named_dtype(arguments.dtype),
            actors=arguments.actors,
            threads=arguments.actor_threads or 1,
        )


def _review(arguments: argparse.Namespace) -> "Review | None":
    if arguments.min_confidence is None:
        return None
    from ..captioning.review import Review

    each = _count_prompts(arguments.prompt or [""], arguments.question or [""]) * (arguments.num_captions or 1)
    return Review(OutputFile(arguments.review, "json", each), arguments.min_confidence)


def _choose_confidence(captioner: "AnyCaptioner", arguments: argparse.Namespace, is_written: bool) -> None:
    """Leaves confidences out where nobody reads them.

    Args:
        captioner: The captioner.
        arguments: The options.
        is_written: Whether an output has a place for confidences.

    Raises:
        ConfigError: A minimum is given, and the checkpoint has no confidences.
    """
    if arguments.min_confidence is not None and captioner.confidence is None:
        raise ConfigError(
            f"--min-confidence: {arguments.checkpoint} has no confidence.json: make it with scripts/calibrate.py, "
            "before an export, or leave the option out."
        )
    if arguments.no_confidence or not (is_written or arguments.min_confidence is not None):
        captioner.confidence = None


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


def _load_config(arguments: argparse.Namespace) -> "RunConfig | None":
    if arguments.config is None:
        return None
    from ..config.run_config import RunConfig

    return RunConfig.load(arguments.config)


def _find_inputs(
    parser: ArgumentParser,
    arguments: argparse.Namespace,
    config: "RunConfig | None",
    on_error: Callable[[ImageError], None],
) -> "tuple[list[ImageSource] | Vectors, list[list[str]]]":
    """Returns the pictures or vectors to caption, and the questions about each if a corpus has them."""
    if arguments.features is not None:
        from ..data.vectors import open_vectors

        return open_vectors(arguments.features, arguments.feature_column), []
    questions: list[list[str]] = []
    if config is not None:
        from ..captioning.corpus_inputs import open_corpus_inputs

        with loading("the corpus"):
            corpus = open_corpus_inputs(config.data, arguments.split, on_error)
        pictures, questions = corpus.inputs, corpus.questions
    else:
        pictures = _find_pictures(parser, arguments, on_error)
    if not isinstance(pictures, list):
        if arguments.sidecars or arguments.xmp or arguments.example:
            raise ConfigError("--sidecars, --xmp and --example are for pictures, and data.features gives vectors.")
        if arguments.engine == "ray":
            raise ConfigError("--engine ray captions pictures, and data.features gives vectors: leave it out.")
        return pictures, questions
    return _leave_out(pictures, questions, _beside(arguments), on_error)


def _find_pictures(
    parser: ArgumentParser, arguments: argparse.Namespace, on_error: Callable[[ImageError], None]
) -> "list[ImageSource]":
    from ..captioning.inputs import find_pictures
    from ..images.finding import PassedOver

    stdin = sys.stdin.buffer if "-" in arguments.images else None
    passed_over = PassedOver()
    pictures = find_pictures(arguments.images, on_error, stdin, passed_over)
    if str(passed_over):
        parser.complain(str(passed_over))
    return pictures


def _leave_out(
    pictures: "list[ImageSource]",
    questions: list[list[str]],
    writers: "Sequence[Sidecars | Descriptions]",
    on_error: Callable[[ImageError], None],
) -> "tuple[list[ImageSource], list[list[str]]]":
    """Leaves out the pictures whose captions cannot be written beside them."""
    from ..images.opening import describe

    if not writers:
        return pictures, questions
    names = list(map(describe, pictures))
    unusable = {name: error for writer in writers for name, error in writer.unusable(names).items()}
    for error in unusable.values():
        on_error(error)
    left = [row for row, name in enumerate(names) if name not in unusable]
    for writer in writers:
        writer.remove_leftovers([names[row] for row in left])
    return [pictures[row] for row in left], [questions[row] for row in left] if questions else []


def _paths(inputs: "Sequence[ImageSource] | Vectors", arguments: argparse.Namespace) -> list[str | None]:
    """Returns all files that are read, as far as they are files."""
    named = [name.removeprefix("@") for name in arguments.images]
    pictures: list[Any] = inputs if isinstance(inputs, list) else []
    return [
        *named,
        *(str(item) for item in pictures if isinstance(item, Path)),
        arguments.config,
        arguments.features,
        *(image for image, _ in arguments.example),
    ]


def _beside(arguments: argparse.Namespace) -> list[Sidecars | Descriptions]:
    wording = Wording(arguments.prefix, arguments.suffix, arguments.append, arguments.overwrite)
    writers = {Sidecars: arguments.sidecars, Descriptions: arguments.xmp}
    return [writer(wording) for writer, is_wanted in writers.items() if is_wanted]


def _writers(arguments: argparse.Namespace, named: bool, has_prompts: bool) -> list[Writer]:
    """Returns where captions go.

    Args:
        arguments: The options.
        named: Whether a line of text names its picture.
        has_prompts: Whether the corpus asks questions.
    """
    if arguments.format == "coco" and has_prompts:
        raise ConfigError("--format coco has one caption for each picture, and the corpus asks questions.")
    writers: list[Writer] = [*_beside(arguments)]
    num_prompts = _count_prompts(arguments.prompt or [""], arguments.question or [""])
    if keeps_captions(arguments):
        each = num_prompts * (arguments.num_captions or 1)
        return [OutputFile(arguments.output, arguments.format, each), *writers]
    if writers and arguments.output is None:
        return writers
    if arguments.format in ("parquet", "coco"):
        return [*writers, StandardTable(arguments.format)]
    columns = columns_of([dict.fromkeys(COLUMNS | ({"prompt": str} if num_prompts > 1 or has_prompts else {}))])
    is_named = named or arguments.features is not None or arguments.config is not None
    return [*writers, StandardOutput(arguments.format, is_named, list(columns))]


def _count_prompts(prompts: Sequence[str], questions: Sequence[str]) -> int:
    """Returns how many prompts a picture gets. Among several, some may ask no question."""
    return sum(len(questions) if len(prompts) == 1 or QUESTION in prompt else 1 for prompt in prompts)


def _settings(
    captioner: "AnyCaptioner",
    arguments: argparse.Namespace,
    config: "RunConfig | None",
    inputs: "Sequence[ImageSource] | Vectors",
    questions: list[list[str]],
) -> dict[str, Any]:
    """Returns the arguments of `caption_each` that the options and the config give.

    Raises:
        ConfigError: A question is asked of a checkpoint that was not trained on questions.
    """
    names = [option.lstrip("-").replace("-", "_") for option in DECODING]
    settings = {name: getattr(arguments, name) for name in names}
    settings["num_return_sequences"] = settings.pop("num_captions")
    settings["document_frequencies"] = settings.pop("consensus_captions")
    if settings["document_frequencies"] is not None:
        from ..captioning.consensus import DocumentFrequencies

        settings["document_frequencies"] = DocumentFrequencies.load(settings["document_frequencies"])
    if settings.pop("sample"):
        settings |= {"do_sample": True, "num_beams": arguments.num_beams or 1}
    data = None if config is None else config.data
    if isinstance(inputs, list):
        settings["max_pixels"] = arguments.max_pixels or (data.max_pixels if data else MAX_PIXELS)
        settings["max_bytes"] = arguments.max_bytes or (data.max_bytes if data else MAX_BYTES)
        settings["examples"] = [(image, caption) for image, caption in arguments.example]
    prompts = arguments.prompt or [data.prompt if data else ""]
    asked = arguments.question or []
    if (asked or questions) and not any(QUESTION in (prompt or captioner.prompt) for prompt in prompts):
        option = "--question" if asked else "--config"
        raise ConfigError(
            f"{option}: {arguments.checkpoint} was not trained on questions: leave it out, or give a --prompt with "
            f"{QUESTION}."
        )
    several = [asked] * len(inputs) if len(asked) > 1 else questions if not asked else []
    return settings | {
        "prompt": prompts[0] if len(prompts) == 1 else prompts,
        "question": several or (asked[0] if asked else None),
    }

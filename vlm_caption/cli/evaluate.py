"""Scores a checkpoint on captioned images, or captions from a file against references.

For example, with COMMAND for `vlm-caption evaluate` or `python scripts/evaluate.py`:

    COMMAND --checkpoint runs/mine
    COMMAND --checkpoint runs/mine --data.path ../shared/flickr8k --split dev
    COMMAND --results results.json --references captions_val2014.json

Without --config or another --data.path, a run is scored on its own dev split, with the data settings that it was
trained with. Options take precedence over them.

The scores of a whole split are added to the model card, if the checkpoint is a folder.
"""

import argparse
import dataclasses
import itertools
import json
import logging
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..captioning.checkpoints import DEFAULT_CHECKPOINT
from ..config.command_line import add_arguments, parse_arguments
from ..config.run_config import RunConfig
from ..core.console import ArgumentParser, loading, natural_int, printable, setup_logging
from ..core.errors import BackboneError, ConfigError, DataError, ImageError
from ..core.outputs import check_outputs
from .loading import load_for_datasets

if TYPE_CHECKING:
    from ..captioning.captioner import Captioner
    from ..evaluation.result import Evaluation

logger = logging.getLogger(__name__)


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 1 if the model card cannot be written; 2 for what cannot be used; 130 after Ctrl-C.
    """
    parser = _parser(prog)
    try:
        arguments, overrides = parse_arguments(parser, argv)
        setup_logging()
        own = _run_settings(arguments, overrides)
        config = RunConfig.load(arguments.config, overrides, own)
        _check(parser, arguments, config)
        _check_outputs(arguments)
        with writing_to(arguments.output_dir):
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
        captioner = None
        if arguments.results is None:
            captioner, config = _load(arguments, config, overrides, own)
            result = _evaluate(captioner, config, arguments)
        else:
            result = _evaluate_files(config, arguments)
        with writing_to(arguments.output_dir):
            from ..evaluation.files import write_evaluation

            files = write_evaluation(arguments.output_dir, result, config.data.max_pixels, config.data.max_bytes)
    except (BackboneError, DataError, ImageError, ValueError, OSError) as error:
        parser.complain(error)
        return 2
    except KeyboardInterrupt:
        parser.complain("stopped; the same command goes on from the captions already written")
        return 130
    _print(result, arguments.captions)
    print(printable(f"Written: {', '.join(map(str, files))}"))
    code = 0
    if captioner is not None and config.data.limit is None:
        code = _record(captioner, config, arguments, result, parser, sys.argv[1:] if argv is None else argv)
    if arguments.json:
        print(json.dumps(result.to_dict() | {"files": [str(file) for file in files]}))
    return code


def _check(parser: ArgumentParser, arguments: argparse.Namespace, config: RunConfig) -> None:
    if (arguments.results is None) != (arguments.references is None):
        parser.error("--results and --references go together")
    if arguments.results is None and not config.data.path:
        parser.error("say what to score: --results and --references, or --data.path of captioned photos")


def _check_outputs(arguments: argparse.Namespace) -> None:
    from ..evaluation.files import RESULTS_NAME, evaluation_outputs

    other = (arguments.compare, arguments.compare / RESULTS_NAME) if arguments.compare else ()
    check_outputs(evaluation_outputs(arguments.output_dir), [arguments.results, arguments.references, *other])


def _run_settings(arguments: argparse.Namespace, overrides: dict[str, Any]) -> dict[str, Any]:
    """Returns the data settings of the run that trained the checkpoint; {} if they are unknown or not to be used.

    They describe the run's own data, so they are not used for data from another place.

    Raises:
        ConfigError: They cannot be read.
    """
    path = None if arguments.results or arguments.config else RunConfig.find(arguments.checkpoint)
    if path is None:
        return {}
    try:
        data = dataclasses.asdict(RunConfig.load(path).data)
    except ConfigError:
        if "data.path" in overrides:
            return {}
        raise
    own = _places(data["path"])
    chosen = _places(overrides.get("data.path", data["path"]))
    if not chosen <= own:
        return {}
    logger.info("The data settings are those of %s", path)
    if chosen != own:
        data["weights"] = None  # which has a number for each of the others too
    return {f"data.{name}": value for name, value in data.items()}


def _places(path: str | list) -> set[Path]:
    """Returns the places of a corpus, or of several."""
    return {Path(str(place)).resolve() for place in (path if isinstance(path, list) else [path])}


def _load(
    arguments: argparse.Namespace, config: RunConfig, overrides: dict[str, Any], own: dict[str, Any]
) -> "tuple[Captioner, RunConfig]":
    """Loads the checkpoint, and the config with the settings that the checkpoint was trained with."""
    captioner = load_for_datasets(arguments.checkpoint)
    from ..towers.precision import hold_frozen

    config = as_trained(captioner, arguments, overrides, own)
    hold_frozen(captioner.model, arguments.precision or config.training.precision)
    return captioner, config


def _evaluate_files(config: RunConfig, arguments: argparse.Namespace) -> "Evaluation":
    with loading("the metrics"):
        from ..data.opening import picture_opener
        from ..evaluation.evaluate import evaluate_files
        from ..evaluation.scoring import ScoringSettings
    return evaluate_files(
        arguments.results,
        arguments.references,
        images_dir=config.data.images,
        scoring=ScoringSettings(
            clip_model=arguments.clip_model,
            compare_with=arguments.compare,
            allow_missing=arguments.allow_missing,
        ),
        open_picture=picture_opener(config.data),
    )


def _print(result: "Evaluation", captions: int) -> None:
    from ..data.places import Place
    from ..evaluation.table import evaluation_table

    print(evaluation_table(result))
    shown = zip(result.image_ids, result.images, result.captions, result.references, strict=True)
    for image, place, caption, references in itertools.islice(shown, captions):
        name = Place.parse(place).short_name if place == image else image
        print(printable(f"  {name}: {caption}  [reference: {references[0]}]"))


def _parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id (checkpoints/embedded)")
    parser.add_argument("--config", help="a YAML file, for its sections data and generation")
    parser.add_argument("--split", help="the split to score; by default data.dev_split")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), help="the precision of the weights, as in training (auto)"
    )
    parser.add_argument("--results", type=Path, metavar="FILE", help="captions to score, in COCO's results format")
    parser.add_argument(
        "--references", type=Path, metavar="FILE", help="their references, in COCO's annotations format"
    )
    parser.add_argument("--allow-missing", action="store_true", help="score only the images that both files have")
    parser.add_argument(
        "--compare", type=Path, metavar="FILE", help="another results.json, or its folder, to compare with"
    )
    parser.add_argument("--clip-model", metavar="NAME", help="for CLIPScore: a folder or a Hub id")
    parser.add_argument(
        "--output-dir",
        type=Path,
        default=Path("evaluation"),
        help="the folder for results.json, references.json, per_image.csv and report.html (evaluation)",
    )
    parser.add_argument("--captions", type=natural_int, default=10, help="the number of captions to print (10)")
    parser.add_argument("--json", action="store_true", help="end the output with one JSON object")
    add_arguments(parser, ["data", "generation"])
    return parser


def as_trained(
    captioner: "Captioner", arguments: argparse.Namespace, overrides: dict[str, Any], run_settings: dict[str, Any]
) -> RunConfig:
    """Returns the config; what neither the file nor the command line sets is as the checkpoint was trained."""
    from ..hub.facts import trained_caption_tokens

    chat = captioner.processor.chat
    own = {"data.chat": chat, "data.max_caption_tokens": trained_caption_tokens(captioner.model)}
    defaults = run_settings | {name: value for name, value in own.items() if value is not None}
    config = RunConfig.load(arguments.config, overrides, defaults)
    if config.data.chat != chat:
        given, trained = str(config.data.chat).lower(), str(chat).lower()
        raise ConfigError(
            f"data.chat is {given}, and the checkpoint {arguments.checkpoint} was trained with {trained}: leave it "
            "out."
        )
    return config


def _evaluate(captioner: "Captioner", config: RunConfig, arguments: argparse.Namespace) -> "Evaluation":
    from ..data.opening import bad_images, open_data, picture_opener
    from ..data.vectors import open_vectors
    from ..evaluation.captions import UNFINISHED_NAME
    from ..evaluation.evaluate import InputSettings, evaluate, training_captions
    from ..evaluation.scoring import ScoringSettings

    data = config.data
    data.prompt = data.prompt or captioner.processor.prompt  # whether questions are read depends on it
    corpus = open_data(data)
    split = arguments.split or data.dev_split
    bad = bad_images(data) if data.features is None else None
    dataset = corpus.load(split, data.limit, on_missing=None if bad is None else bad.add_missing)
    return evaluate(
        captioner,
        dataset,
        name=str(arguments.checkpoint),
        data=", ".join([*data.paths, split]),
        generation=config.generation.settings(),
        inputs=InputSettings(
            prompt=data.prompt,
            max_caption_tokens=data.max_caption_tokens,
            open_picture=picture_opener(data),
            vectors=None if data.features is None else open_vectors(data.features, data.feature_column),
            bad=bad,
        ),
        scoring=ScoringSettings(
            clip_model=arguments.clip_model,
            training_captions=training_captions(corpus, data.train_split),
            compare_with=arguments.compare,
            allow_missing=arguments.allow_missing,
        ),
        unfinished=arguments.output_dir / UNFINISHED_NAME,
    )


@contextmanager
def writing_to(folder: Path) -> Generator[None]:
    """Names `--output-dir` in the errors of writing there inside a `with` block.

    Raises:
        DataError: Something cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise DataError(f"--output-dir {folder}: {error.strerror or error}") from error


def _record(
    captioner: "Captioner",
    config: RunConfig,
    arguments: argparse.Namespace,
    result: "Evaluation",
    parser: ArgumentParser,
    argv: list[str],
) -> int:
    """Adds the scores to the model card of a checkpoint in a writable folder, and returns the exit code.

    The checkpoint that comes with the package stays as it is.
    """
    from ..hub.card import write_model_card
    from ..hub.facts import evaluation_facts, record_evaluation

    folder = Path(arguments.checkpoint)
    is_shipped = folder.resolve() == DEFAULT_CHECKPOINT.resolve()
    if is_shipped or not (folder.is_dir() and os.access(folder, os.W_OK)):
        return 0
    losses = {"loss": result.loss, "shuffled_loss": result.shuffled_loss}
    scores = losses | {"vqa_accuracy": result.vqa_accuracy} | result.metrics
    facts = evaluation_facts(
        captioner.model,
        data=config.data.path,
        split=arguments.split or config.data.dev_split,
        images=result.num_images,
        prompt=config.data.prompt,
        generation=result.generation,
        metrics=scores,
        intervals={name: result.intervals[name] for name in scores if name in result.intervals},
        command=["python", "scripts/evaluate.py", *argv],
    )
    try:
        record_evaluation(captioner.model, folder, facts)
        write_model_card(captioner.model, folder)
    except (OSError, ValueError) as error:
        parser.complain(f"the scores are not in the model card: {error}")
        return 1
    return 0

"""Scores a checkpoint on captioned photos, or somebody's captions against references.

    python scripts/evaluate.py --checkpoint runs/mine --data.path ../shared/flickr8k --split dev
    python scripts/evaluate.py --results results.json --references captions_val2014.json

The scores of a whole split go into the model card of a checkpoint that is a folder of yours.
"""

import argparse
import itertools
import json
import os
import sys
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import disable_progress_bars

from vlm_caption.captioning.captioner import DEFAULT_CHECKPOINT, Captioner
from vlm_caption.config.run_config import RunConfig, add_arguments, parse_arguments
from vlm_caption.core.console import ArgumentParser, natural_int, setup_logging
from vlm_caption.core.errors import BackboneError, ConfigError, ImageError
from vlm_caption.data import DataError, Place, open_vectors
from vlm_caption.data.opening import bad_images, open_data, picture_opener
from vlm_caption.evaluation.captions import UNFINISHED_NAME
from vlm_caption.evaluation.evaluate import Evaluation, evaluate, evaluate_files, training_captions
from vlm_caption.evaluation.files import write_evaluation
from vlm_caption.hub.card import write_model_card
from vlm_caption.hub.facts import evaluation_facts, record_evaluation, trained_caption_tokens
from vlm_caption.towers.precision import hold_frozen


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if the card cannot be written; 2 for what cannot be used; 130 after Ctrl-C."""
    parser = _parser()
    try:
        arguments, overrides = parse_arguments(parser, argv)
        config = RunConfig.load(arguments.config, overrides)
        if (arguments.results is None) != (arguments.references is None):
            parser.error("--results and --references go together")
        if arguments.results is None and not config.data.path:
            parser.error("say what to score: --results and --references, or --data.path of captioned photos")
        setup_logging()
        disable_progress_bars()  # of leaving out rows
        with _writing_to(arguments.output_dir):
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
        captioner = None
        if arguments.results is None:
            captioner = Captioner.from_pretrained(arguments.checkpoint)
            config = _as_trained(captioner, arguments, overrides)
            hold_frozen(captioner.model, arguments.precision or config.training.precision)
            result = _evaluate(captioner, config, arguments)
        else:
            result = evaluate_files(
                arguments.results,
                arguments.references,
                allow_missing=arguments.allow_missing,
                images_dir=config.data.images,
                clip_model=arguments.clip_model,
                compare_with=arguments.compare,
                open_picture=picture_opener(config.data),
            )
        with _writing_to(arguments.output_dir):
            files = write_evaluation(arguments.output_dir, result, config.data.max_pixels, config.data.max_bytes)
    except (BackboneError, DataError, ImageError, ValueError, OSError) as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return _complain("stopped; the same command goes on from the captions already written", 130)
    print(result)
    shown = zip(result.image_ids, result.images, result.captions, result.references, strict=True)
    for image, place, caption, references in itertools.islice(shown, arguments.captions):
        name = Place.parse(place).short_name if place == image else image
        print(f"  {name}: {caption}  [reference: {references[0]}]")
    print(f"Written: {', '.join(map(str, files))}")
    code = 0
    if captioner is not None and config.data.limit is None:
        code = _record(captioner, config, arguments, result, sys.argv[1:] if argv is None else argv)
    if arguments.json:
        print(json.dumps(result.to_dict() | {"files": [str(file) for file in files]}))
    return code


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        prog="evaluate.py",
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id")
    parser.add_argument("--config", help="a training's YAML file, for its sections data and generation")
    parser.add_argument("--split", help="of the data; by default data.dev_split")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), help="as in training")
    parser.add_argument("--results", type=Path, metavar="FILE", help="captions to score, in COCO's results format")
    parser.add_argument("--references", type=Path, metavar="FILE", help="theirs, in COCO's annotations format")
    parser.add_argument("--allow-missing", action="store_true", help="score the images that both files have")
    parser.add_argument("--compare", type=Path, metavar="FILE", help="another results.json, or its folder")
    parser.add_argument("--clip-model", metavar="NAME", help="for CLIPScore: a folder or a Hub id")
    parser.add_argument(
        "--output-dir", type=Path, default=Path("evaluation"), help="of results.json, per_image.csv and report.html"
    )
    parser.add_argument("--captions", type=natural_int, default=10, help="how many captions to print")
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    add_arguments(parser, ["data", "generation"])
    return parser


def _as_trained(captioner: Captioner, arguments: argparse.Namespace, overrides: dict[str, Any]) -> RunConfig:
    """The config, with the checkpoint's own settings where neither the file nor the command line has others."""
    chat = captioner.processor.chat
    own = {"data.chat": chat, "data.max_caption_tokens": trained_caption_tokens(captioner.model)}
    defaults = {name: value for name, value in own.items() if value is not None}
    config = RunConfig.load(arguments.config, overrides, defaults)
    if config.data.chat != chat:
        given, trained = str(config.data.chat).lower(), str(chat).lower()
        raise ConfigError(
            f"data.chat is {given}, and the checkpoint {arguments.checkpoint} was trained with {trained}: leave it "
            "out."
        )
    return config


def _evaluate(captioner: Captioner, config: RunConfig, arguments: argparse.Namespace) -> Evaluation:
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
        data=f"{data.path}, {split}",
        generation=config.generation.settings(),
        training_captions=training_captions(corpus, data.train_split),
        clip_model=arguments.clip_model,
        compare_with=arguments.compare,
        allow_missing=arguments.allow_missing,
        prompt=data.prompt,
        max_caption_tokens=data.max_caption_tokens,
        open_picture=picture_opener(data),
        vectors=None if data.features is None else open_vectors(data.features, data.feature_column),
        bad=bad,
        unfinished=arguments.output_dir / UNFINISHED_NAME,
    )


@contextmanager
def _writing_to(folder: Path) -> Generator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"--output-dir {folder}: {error.strerror or error}") from error


def _record(
    captioner: Captioner, config: RunConfig, arguments: argparse.Namespace, result: Evaluation, argv: list[str]
) -> int:
    """Puts the scores into the card of a checkpoint that may be written to; returns the exit code."""
    folder = Path(arguments.checkpoint)
    if not (folder.is_dir() and os.access(folder, os.W_OK)):
        return 0
    scores = {"loss": result.loss, "shuffled_loss": result.shuffled_loss, **result.metrics}
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
        return _complain(f"the scores are not in the model card: {error}", 1)
    return 0


def _complain(error: Exception | str, code: int) -> int:
    print(f"evaluate.py: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

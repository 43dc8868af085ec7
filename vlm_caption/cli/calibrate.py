"""Fits the probability that a caption is right, and saves it in the checkpoint as `confidence.json`.

For example, with COMMAND for `vlm-caption calibrate` or `python scripts/calibrate.py`:

    COMMAND --checkpoint runs/mine --data.path ../shared/flickr8k
    COMMAND --checkpoint runs/mine --config runs/mine/run_config.yaml --limit 500

It captions the images of the dev split, which the checkpoint must not have been trained on, and drawn pictures for
which no caption is right. It uses cached features, if there are any. A stopped command resumes.
"""

import argparse
import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING

from ..captioning.checkpoints import DEFAULT_CHECKPOINT
from ..config.command_line import add_arguments, parse_arguments
from ..config.run_config import RunConfig
from ..core.console import ArgumentParser, positive_int, printable, setup_logging
from ..core.errors import BackboneError, ConfigError, DataError, ImageError
from ..core.outputs import Output, check_outputs
from .evaluate import as_trained, writing_to
from .loading import load_for_datasets

if TYPE_CHECKING:
    from ..captioning.captioner import Captioner
    from ..evaluation.calibration import Calibration

PLOT_NAME = "reliability.png"
REPORT_NAME = "calibration.json"
_UNFINISHED_NAME = "unfinished_calibration.jsonl"

# How such files begin; see `check_outputs`.
_PLOT, _REPORT = (b"\x89PNG",), (b'{\n  "images"',)


def main(argv: list[str] | None, prog: str) -> int:
    """Runs the command.

    Args:
        argv: The arguments. With None, those of the program.
        prog: The name of the command, for messages.

    Returns:
        The exit code: 0; 1 if the model card cannot be written; 2 for what cannot be used; 130 after Ctrl-C.
    """
    parser = _parser(prog)
    start = time.monotonic()
    try:
        arguments, overrides = parse_arguments(parser, argv)
        setup_logging()
        config = RunConfig.load(arguments.config, overrides)
        if not config.data.path:
            parser.error("say what to fit on: --data.path of captioned photos")
        folder = Path(arguments.checkpoint)
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            raise ConfigError(f"--checkpoint {arguments.checkpoint}: confidences are saved in its folder: give that.")
        plot, report = arguments.output_dir / PLOT_NAME, arguments.output_dir / REPORT_NAME
        check_outputs([Output("--output-dir", plot, _PLOT, True), Output("--output-dir", report, _REPORT, True)])
        with writing_to(arguments.output_dir):
            arguments.output_dir.mkdir(parents=True, exist_ok=True)
        captioner, config = _load(arguments, config, overrides)
        calibration = _calibrate(captioner, config, arguments)
        saved = _save(calibration, folder, plot, report)
    except (BackboneError, DataError, ImageError, ValueError, OSError) as error:
        parser.complain(error)
        return 2
    except KeyboardInterrupt:
        parser.complain("stopped; the same command goes on from the captions already written")
        return 130
    for line in str(calibration.report).splitlines():
        print(printable(line))
    minutes = (time.monotonic() - start) / 60
    print(printable(f"Written after {minutes:.1f} minutes: {saved}, {plot}, {report}"))
    return _record(captioner, calibration, folder, parser)


def _parser(prog: str) -> ArgumentParser:
    parser = ArgumentParser(
        prog=prog,
        description=__doc__,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="the folder of the checkpoint")
    parser.add_argument("--config", help="a YAML file, for its sections data and generation")
    parser.add_argument("--split", help="the split to fit on; by default data.dev_split")
    parser.add_argument(
        "--precision", choices=("auto", "fp32", "bf16"), help="the precision of the weights, as in training (auto)"
    )
    parser.add_argument(
        "--right-share",
        type=float,
        default=0.95,
        metavar="X",
        help="a caption is right if its CIDEr-D is higher with its own references than with those of this share of "
        "other images (0.95)",
    )
    parser.add_argument(
        "--negatives",
        type=positive_int,
        default=20,
        metavar="N",
        help="the number of drawn pictures of each kind (20)",
    )
    parser.add_argument(
        "--train-images",
        type=positive_int,
        default=1000,
        metavar="N",
        help="the number of images of the training split whose features are averaged (1000)",
    )
    parser.add_argument(
        "--output-dir", type=Path, default=Path("calibration"), help=f"the folder for {PLOT_NAME} and {REPORT_NAME}"
    )
    add_arguments(parser, ["data", "generation"])
    return parser


def _load(arguments: argparse.Namespace, config: RunConfig, overrides: dict) -> "tuple[Captioner, RunConfig]":
    captioner = load_for_datasets(arguments.checkpoint)
    from ..towers.precision import hold_frozen

    hold_frozen(captioner.model, arguments.precision or config.training.precision)
    return captioner, as_trained(captioner, arguments, overrides, {})


def _calibrate(captioner: "Captioner", config: RunConfig, arguments: argparse.Namespace) -> "Calibration":
    from ..data.opening import bad_images, open_data, picture_opener
    from ..evaluation.calibration import CalibrationSettings, calibrate
    from ..evaluation.evaluate import InputSettings
    from ..hub.facts import data_name

    data = config.data
    if data.features is not None:
        raise ConfigError("data.features gives vectors, and confidences are fitted to captions of pictures.")
    settings = CalibrationSettings(arguments.right_share, arguments.negatives)  # before the work
    data.prompt = data.prompt or captioner.processor.prompt
    corpus = open_data(data)
    split = arguments.split or data.dev_split
    bad = bad_images(data)
    on_missing = None if bad is None else bad.add_missing
    dataset = corpus.load(split, data.limit, on_missing=on_missing)
    return calibrate(
        captioner,
        dataset,
        corpus.load(data.train_split, arguments.train_images, on_missing=on_missing),
        data=f"{data_name(data.path)}, {split}",
        generation=config.generation.settings(),
        inputs=InputSettings(
            prompt=data.prompt,
            max_caption_tokens=data.max_caption_tokens,
            open_picture=picture_opener(data),
            bad=bad,
        ),
        settings=settings,
        unfinished=arguments.output_dir / _UNFINISHED_NAME,
    )


def _save(calibration: "Calibration", folder: Path, plot: Path, report: Path) -> Path:
    """Writes the confidences, the plot and the report, and returns the file of the confidences."""
    from ..core.files import write_bytes, write_text
    from ..evaluation.calibration_report import draw_reliability

    with writing_to(plot.parent):
        write_bytes(plot, draw_reliability(calibration.report))
        write_text(report, json.dumps(calibration.report.to_dict(), indent=2) + "\n")
    return calibration.confidence.save(folder)


def _record(captioner: "Captioner", calibration: "Calibration", folder: Path, parser: ArgumentParser) -> int:
    """Adds the calibration to the checkpoint's model card, and returns the exit code."""
    from ..hub.card import write_model_card
    from ..hub.facts import record_confidence

    try:
        record_confidence(
            captioner.model, folder, dict(calibration.confidence.fitted_on), calibration.report.to_dict()
        )
        write_model_card(captioner.model, folder)
    except (OSError, ValueError) as error:
        parser.complain(f"the confidences are not in the model card: {error}")
        return 1
    return 0

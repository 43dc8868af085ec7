"""Looks at captioned images before training: `python scripts/inspect_data.py ../shared/flickr8k`."""

import json
import sys
from pathlib import Path

from vlm_caption.config.run_config import RunConfig, add_arguments, parse_arguments
from vlm_caption.core.console import ArgumentParser, positive_int, setup_logging
from vlm_caption.core.errors import BackboneError, ConfigError
from vlm_caption.core.outputs import PAGE, Output, check_outputs
from vlm_caption.data import DataError
from vlm_caption.data.opening import open_data
from vlm_caption.inspection.inspect import inspect_data, local_tokenizer, write_contact_sheet


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if training would refuse the data; 2 for settings that cannot be used."""
    parser = ArgumentParser(prog="inspect_data.py", description=__doc__, allow_abbrev=False)
    parser.add_argument("path", nargs="?", metavar="PATH", help="the corpus; the same as --data.path")
    parser.add_argument("--config", help="a training's YAML file; its language model counts the tokens, if it is here")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a text")
    parser.add_argument(
        "--html",
        type=Path,
        metavar="FILE",
        help="a page of random images with their captions (contact_sheet.html; with --json none unless asked for)",
    )
    parser.add_argument("--samples", type=positive_int, default=24, metavar="N", help="images on the page (24)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the choice of images (0)")
    add_arguments(parser, ["data"])
    try:
        arguments, overrides = parse_arguments(parser, argv)
        if arguments.path is not None:
            overrides["data.path"] = arguments.path
        config = RunConfig.load(arguments.config, overrides)
        if not config.data.path:
            parser.error("say where the captioned images are: PATH, or a --config that has data.path")
        if config.data.features is not None:
            parser.error("data.features: this looks at pictures; of vectors, training checks every number")
        if arguments.html and not arguments.html.parent.is_dir():
            parser.error(f"--html: there is no folder {arguments.html.parent}")
        page = arguments.html or (None if arguments.json else Path("contact_sheet.html"))
        if page is not None:
            check_outputs([Output("--html", page, PAGE)], [arguments.config, config.data.path])
    except ConfigError as error:
        return _complain(error, 2)
    setup_logging()

    tokenizer, no_tokens = None, "give the --config of the training, for its language model's tokenizer"
    if arguments.config:
        try:
            model = config.model
            tokenizer = local_tokenizer(model.language, model.language_revision, model.tokenizer)
        except BackboneError as error:
            no_tokens = str(error).rstrip(".")
    try:
        corpus = open_data(config.data)
        inspection = inspect_data(corpus, config.data, config.training.eval_images, tokenizer, no_tokens)
    except DataError as error:
        if arguments.json:
            print(json.dumps({"path": config.data.path, "refusal": str(error)}))
        return _complain(f"training would refuse this data: {error}", 1)
    except ConfigError as error:
        return _complain(error, 2)
    except KeyboardInterrupt:
        return 130
    print(json.dumps(inspection.to_dict()) if arguments.json else inspection)
    if page is not None:
        try:
            limits = config.data.max_pixels, config.data.max_bytes
            write_contact_sheet(page, inspection, arguments.samples, arguments.seed, *limits)
        except (OSError, ValueError) as error:
            return _complain(error, 2)
        if not arguments.json:
            print(f"Page: {page}")
    return int(inspection.refusal is not None)


def _complain(error: Exception | str, code: int) -> int:
    print(f"inspect_data.py: {error}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())

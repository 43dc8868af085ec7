"""Scores a checkpoint on captioned photos: `python scripts/evaluate.py --data.path ../shared/flickr8k --split dev`.

The scores of a whole split go into the model card of a checkpoint that is a folder of yours.
"""

import json
import os
import sys
from pathlib import Path

from datasets import Dataset, disable_progress_bars

from vlm_caption.backbones import BackboneError
from vlm_caption.captioner import DEFAULT_CHECKPOINT, Captioner
from vlm_caption.console import ArgumentParser, positive_int, setup_logging
from vlm_caption.data import BadImages, DataError, PictureOpener, Place, check_pictures, drop_rows, open_vectors
from vlm_caption.evaluation import Evaluation, evaluate
from vlm_caption.facts import evaluation_facts, record_evaluation
from vlm_caption.files import write_text
from vlm_caption.hardware import hold_frozen
from vlm_caption.images import ImageError
from vlm_caption.model_card import write_model_card
from vlm_caption.run_config import DataSection, RunConfig, add_arguments, parse_arguments
from vlm_caption.training_data import open_data


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code: 0; 1 if the card cannot be written; 2 for a checkpoint or data that cannot be used."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    parser.add_argument("--checkpoint", default=DEFAULT_CHECKPOINT, help="a folder or a Hub id")
    parser.add_argument("--split", default="dev")
    parser.add_argument("--num-beams", type=positive_int)
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="as in training")
    parser.add_argument("--captions", type=int, default=10, help="how many captions to show")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    add_arguments(parser, ["data"])  # as in the config that the checkpoint was trained with
    try:
        arguments, overrides = parse_arguments(parser, argv)
        data = RunConfig.load(None, overrides).data
        if not data.path:
            parser.error("--data.path: say where the captioned photos are")
        if arguments.json and not arguments.json.parent.is_dir():
            parser.error(f"--json: there is no folder {arguments.json.parent}")
        setup_logging()
        disable_progress_bars()  # of leaving out rows
        beams = {} if arguments.num_beams is None else {"num_beams": arguments.num_beams}
        open_picture = PictureOpener(data.max_pixels, data.max_bytes)
        dataset, bad = _load(data, arguments.split, open_picture)
        captioner = Captioner.from_pretrained(arguments.checkpoint)
        hold_frozen(captioner.model, arguments.precision)
        result = evaluate(
            captioner,
            dataset,
            prompt=data.prompt,
            max_caption_tokens=data.max_caption_tokens,
            open_picture=open_picture,
            vectors=None if data.features is None else open_vectors(data.features, data.feature_column),
            **beams,
        )
    except (BackboneError, DataError, ImageError, ValueError) as error:
        print(f"evaluate.py: {error}", file=sys.stderr)
        return 2
    print(f"{len(dataset)} images of {data.path}, {arguments.split}")
    for file, reason in list(bad.items())[:1]:
        print(f"left out        {len(bad):8d} bad images, first: {file}: {reason}")
    print(f"loss            {result.loss:8.4f} nats a token")
    if result.shuffled_loss is not None:
        print(f"shuffled images {result.shuffled_loss:8.4f} nats a token")
    for name, value in result.metrics.items():
        print(f"{name:15s} {100 * value:8.2f}")
    if result.reason:
        print(f"not computed: {result.reason}")
    for row, caption in zip(dataset.take(min(arguments.captions, len(dataset))), result.captions, strict=False):
        print(f"  {Place.parse(row['image']).short_name}: {caption}  [reference: {row['captions'][0]}]")
    if arguments.json:
        _write_json(arguments.json, result, dataset["image"], bad)
    folder = Path(arguments.checkpoint)
    if data.limit is None and folder.is_dir() and os.access(folder, os.W_OK):
        facts = evaluation_facts(
            captioner.model,
            data=data.path,
            split=arguments.split,
            images=len(dataset),
            prompt=data.prompt,
            generation=beams,
            metrics=_scores(result),
            command=["python", "scripts/evaluate.py", *(sys.argv[1:] if argv is None else argv)],
        )
        try:
            record_evaluation(captioner.model, folder, facts)
            write_model_card(captioner.model, folder)
        except (OSError, ValueError) as error:
            print(f"evaluate.py: the scores are not in the model card: {error}", file=sys.stderr)
            return 1
    return 0


def _scores(result: Evaluation) -> dict[str, float | None]:
    return {"loss": result.loss, "shuffled_loss": result.shuffled_loss, **result.metrics}


def _load(data: DataSection, split: str, open_picture: PictureOpener) -> tuple[Dataset, dict[str, str]]:
    """The images to score on; and where bad ones are skipped, why each was left out, by its file."""
    if data.on_bad_image == "error" or data.features is not None:
        return open_data(data).load(split, data.limit), {}
    bad = BadImages(max_share=data.max_bad_share)
    dataset = open_data(data).load(split, data.limit, on_missing=bad.add_missing)
    bad.expect(len(dataset))
    failed = []

    def leave_out(row: int, error: ImageError) -> None:
        failed.append(row)
        bad.add(images[row], error.reason)

    images = dataset["image"]
    check_pictures(images, open_picture, leave_out)
    return drop_rows(dataset, failed), bad.reasons


def _write_json(path: Path, result: Evaluation, images: list[str], bad: dict[str, str]) -> None:
    captions = dict(zip(images, result.captions, strict=True))
    bad_images = [{"file": file, "reason": reason} for file, reason in bad.items()]
    found = {"scores": _scores(result), "captions": captions, "bad_images": bad_images}
    write_text(path, json.dumps(found, indent=2, ensure_ascii=False))


if __name__ == "__main__":
    sys.exit(main())

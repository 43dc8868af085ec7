"""What an evaluation leaves on the disk: results in COCO's format, a table of the images, and a page to look at."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..data.places import Place
from ..images.opening import MAX_BYTES, MAX_PIXELS
from .evaluate import Evaluation
from .report import write_report

RESULTS_NAME = "results.json"
REFERENCES_NAME = "references.json"
TABLE_NAME = "per_image.csv"
REPORT_NAME = "report.html"

_IMAGE_METRICS = ("cider", "bleu_4", "rouge_l", "meteor", "spice")


def write_evaluation(
    folder: Path, evaluation: Evaluation, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> list[Path]:
    """Writes all files of an evaluation, each whole or not at all; what was there by their names is replaced.

    Args:
        folder: where; made where there is none.
        evaluation: of `evaluate` or `evaluate_files`.
        max_pixels, max_bytes: the limits of `open_image`, for the pictures of the page.

    Returns:
        the files: `results.json` and `references.json`, which `evaluate_files` takes, `per_image.csv`, `report.html`.

    Raises:
        OSError: if they cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    results = [
        {"image_id": image, "caption": caption}
        for image, caption in zip(evaluation.image_ids, evaluation.captions, strict=True)
    ]
    _write_json(folder / RESULTS_NAME, results)
    _write_json(folder / REFERENCES_NAME, _annotations(evaluation))
    write_text(folder / TABLE_NAME, _table(evaluation), errors="replace")
    write_report(folder / REPORT_NAME, evaluation, max_pixels=max_pixels, max_bytes=max_bytes)
    return [folder / name for name in (RESULTS_NAME, REFERENCES_NAME, TABLE_NAME, REPORT_NAME)]


def _write_json(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, ensure_ascii=False, indent=0) + "\n", errors="replace")


def _annotations(evaluation: Evaluation) -> dict[str, list[dict[str, Any]]]:
    images = []
    for image, place in zip(evaluation.image_ids, evaluation.images, strict=True):
        named = place is not None and Place.parse(place).is_whole_file
        images.append({"id": image} | ({"file_name": Path(place).name} if named and place else {}))
    captions = [
        (image, caption)
        for image, texts in zip(evaluation.image_ids, evaluation.references, strict=True)
        for caption in texts
    ]
    annotations = [
        {"id": number, "image_id": image, "caption": caption} for number, (image, caption) in enumerate(captions, 1)
    ]
    return {"images": images, "annotations": annotations}


def _table(evaluation: Evaluation) -> str:
    """One line an image: its scores as fractions, and its references in as many columns as there are at most."""
    per_image = evaluation.scores.per_image
    metrics = [metric for metric in _IMAGE_METRICS if metric in per_image]
    most = max(map(len, evaluation.references))
    clip = evaluation.clip_scores
    head = [
        "image_id",
        "image",
        "caption",
        *metrics,
        *(["clip_score"] if clip is not None else []),
        "words",
        *(f"reference_{number}" for number in range(1, most + 1)),
    ]
    file = io.StringIO()
    writer = csv.writer(file)
    writer.writerow(head)
    for row, image in enumerate(evaluation.image_ids):
        place = evaluation.images[row]
        references = evaluation.references[row]
        writer.writerow(
            [
                image,
                Place.parse(place).described if place else "",
                evaluation.captions[row],
                *(f"{per_image[metric][row]:.6f}" for metric in metrics),
                *([f"{clip[row]:.6f}"] if clip is not None else []),
                evaluation.diversity.lengths[row],
                *references,
                *[""] * (most - len(references)),
            ]
        )
    return file.getvalue()

"""The files of an evaluation: results in COCO's format, a table of the images, and a page to look at."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from ..core import outputs
from ..core.files import write_text
from ..core.text import defuse_formula
from ..data.places import Place
from ..images.limits import MAX_BYTES, MAX_PIXELS
from .report import write_report
from .result import Evaluation

RESULTS_NAME = "results.json"
REFERENCES_NAME = "references.json"
TABLE_NAME = "per_image.csv"
REPORT_NAME = "report.html"

_IMAGE_METRICS = ("cider", "bleu_4", "rouge_l", "meteor", "spice")


def evaluation_outputs(folder: Path, option: str = "--output-dir") -> list[outputs.Output]:
    """Returns the files that `write_evaluation` writes, for [`check_outputs`].

    Args:
        folder: The folder.
        option: The option that names it.
    """
    starts = {
        RESULTS_NAME: outputs.RESULTS,
        REFERENCES_NAME: outputs.REFERENCES,
        TABLE_NAME: outputs.TABLE,
        REPORT_NAME: outputs.PAGE,
    }
    return [outputs.Output(option, folder / name, start, makes_folders=True) for name, start in starts.items()]


def write_evaluation(
    folder: Path, evaluation: Evaluation, max_pixels: int = MAX_PIXELS, max_bytes: int = MAX_BYTES
) -> list[Path]:
    """Writes all files of an evaluation, each whole or not at all. Files of the same names are replaced.

    Args:
        folder: The folder. It is created if it does not exist.
        evaluation: The result of `evaluate` or `evaluate_files`.
        max_pixels: The largest picture of the page in pixels; see `open_image`.
        max_bytes: The largest file of a picture in bytes; see `open_image`.

    Returns:
        The files: `results.json` and `references.json`, which `evaluate_files` takes, `per_image.csv`, `report.html`.

    Raises:
        OSError: A file cannot be written.
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
    """Returns a line for each image: its scores as fractions, and its references in as many columns as needed."""
    per_image = evaluation.scores.per_image
    columns = {metric: per_image[metric] for metric in _IMAGE_METRICS if metric in per_image}
    if evaluation.clip_scores is not None:
        columns["clip_score"] = evaluation.clip_scores
    most = max(map(len, evaluation.references))
    file = io.StringIO()
    writer = csv.writer(file)
    references = [f"reference_{number}" for number in range(1, most + 1)]
    writer.writerow(["image_id", "image", "caption", *columns, "words", *references])
    for row, image in enumerate(evaluation.image_ids):
        place = evaluation.images[row]
        texts = [str(image), Place.parse(place).described if place else "", evaluation.captions[row]]
        references = [*evaluation.references[row], *[""] * (most - len(evaluation.references[row]))]
        numbers = [*(f"{values[row]:.6f}" for values in columns.values()), evaluation.diversity.lengths[row]]
        writer.writerow([*map(defuse_formula, texts), *numbers, *map(defuse_formula, references)])
    return file.getvalue()

"""`samples.html`: how the captions of a few dev images change during training."""

import itertools
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..data.bad_images import PictureOpener
from ..data.places import row_name
from ..pages.page import make_thumbnail, write_page
from .dev_scores import first_references


def write_samples_page(
    path: Path,
    rows: Sequence[Mapping[str, Any]],
    log: Sequence[Mapping[str, Any]],
    kept_step: int,
    open_picture: PictureOpener | None,
) -> None:
    """Writes a page that shows dev images with their captions at each evaluation of a training run.

    Consecutive steps with the same caption share a line.

    Args:
        path: The page.
        rows: The images, each with `image`, a place, and `captions`, the references. If there are `questions`, the
            first one is shown with its answers. Images that have no caption yet are left out.
        log: The entries of the training log. Those with `step` and `samples` are used.
        kept_step: The step whose weights are kept. It is marked, and so is the last step.
        open_picture: Opens the pictures; None if the captions are those of vectors, which have no pictures.

    Raises:
        ImageError: A picture cannot be opened.
        OSError: The page cannot be written.
    """
    figures = []
    for number, row in enumerate(rows):
        name = row_name(row["image"], is_vector=open_picture is None)
        captions = sorted(_captions_by_step(log, number, name).items())
        if not captions:
            continue
        figures.append(
            {
                "name": name,
                "picture": open_picture and make_thumbnail(open_picture(row["image"])),
                "question": row["questions"][0] if "questions" in row else None,
                "caption": dict(captions).get(kept_step, captions[-1][1]),
                "references": first_references(row),
                "lines": [
                    {"caption": caption, "steps": [step for step, _ in group]}
                    for caption, group in itertools.groupby(captions, key=lambda pair: pair[1])
                ],
            }
        )
    title = "Captions of dev images during training"
    write_page(path, "samples.html.jinja", title=title, kept_step=kept_step, figures=figures)


def _captions_by_step(log: Sequence[Mapping[str, Any]], number: int, name: str) -> dict[int, str]:
    """Returns the captions of the sample image with the given number and name."""
    captions = {}
    for entry in log:
        # Before it was resumed, a run may have captioned fewer images, or others.
        for sample in entry.get("samples", [])[number : number + 1]:
            if sample["image"] == name:
                captions[entry["step"]] = sample["caption"]
    return captions

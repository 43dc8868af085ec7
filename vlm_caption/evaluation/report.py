"""An evaluation as a web page: scores with intervals, lengths, and pictures with their captions."""

import os
import random
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from ..core.errors import ImageError
from ..data.bad_images import PictureOpener
from ..images.limits import MAX_BYTES, MAX_PIXELS
from ..metrics.bootstrap import Interval
from ..metrics.names import METRIC_NAMES, TOKEN_NAMES
from ..pages.page import make_thumbnail, write_page
from .result import Comparison, Evaluation

# Twice the size at which pictures are shown, for high-density screens.
_THUMBNAIL_SIZE = 480


def write_report(
    path: str | os.PathLike,
    evaluation: Evaluation,
    *,
    examples: int = 8,
    seed: int = 0,
    max_pixels: int = MAX_PIXELS,
    max_bytes: int = MAX_BYTES,
) -> None:
    """Writes the page of an evaluation. Pictures that can no longer be opened are replaced by the reason.

    Args:
        path: The page.
        evaluation: The evaluation.
        examples: How many images to show of each kind: best, worst, random, won and lost.
        seed: The seed that selects the random images.
        max_pixels: The largest picture to open; see `open_image`.
        max_bytes: The largest file to open; see `open_image`.

    Raises:
        OSError: The page cannot be written.
    """
    settings = ", ".join(f"{name} {value}" for name, value in evaluation.generation.items())
    comparison = evaluation.comparison
    write_page(
        path,
        "report.html.jinja",
        title=f"Caption evaluation: {evaluation.name}",
        about=f"{evaluation.counted} of {evaluation.data}, captions of {evaluation.name}",
        settings=settings,
        notes=evaluation.notes,
        scores=list(_score_rows(evaluation)),
        not_computed={
            reason: [METRIC_NAMES.get(metric, metric) for metric in metrics]
            for reason, metrics in evaluation.not_computed_by_reason.items()
        },
        lengths=_lengths(evaluation),
        comparison=comparison and _comparison_values(comparison),
        sheets=list(_sheets(evaluation, examples, seed, PictureOpener(max_pixels, max_bytes))),
    )


def _score_rows(evaluation: Evaluation) -> Iterator[dict[str, str]]:
    intervals, diversity = evaluation.intervals, evaluation.diversity
    if evaluation.vqa_accuracy is not None:
        yield _score_row("VQA accuracy", f"{100 * evaluation.vqa_accuracy:.2f}", intervals["vqa_accuracy"])
    for metric, value in evaluation.metrics.items():
        if value is not None:
            yield _score_row(METRIC_NAMES[metric], f"{100 * value:.2f}", intervals.get(metric))
    if evaluation.shuffled_cider is not None:
        value = f"{100 * evaluation.shuffled_cider:.2f}"
        yield _score_row("CIDEr with other images' references", value, intervals["shuffled_cider"])
    if evaluation.loss is not None:
        yield _score_row("loss, nats per token", f"{evaluation.loss:.3f}")
    if evaluation.shuffled_loss is not None:
        yield _score_row("loss with other images", f"{evaluation.shuffled_loss:.3f}")
    if diversity.unseen is not None:
        yield _score_row("not a training caption, %", f"{100 * diversity.unseen:.1f}", intervals["unseen"])
    repeated = intervals["repeated_4grams"]
    yield _score_row("repeated 4-grams, %", f"{100 * diversity.repeated_4grams:.2f}", repeated)
    yield _score_row("distinct-1", f"{100 * diversity.distinct_1:.2f}")
    yield _score_row("distinct-2", f"{100 * diversity.distinct_2:.2f}")
    words = TOKEN_NAMES[evaluation.scores.tokenizer]
    yield _score_row(f"vocabulary, {words}", f"{diversity.vocabulary:,}")
    yield _score_row(f"mean length, {words}", f"{diversity.mean_length:.2f}", intervals["mean_length"], scale=1)


def _score_row(name: str, value: str, interval: Interval | None = None, scale: int = 100) -> dict[str, str]:
    ends = f"{scale * interval.low:.2f} to {scale * interval.high:.2f}" if interval else ""
    return {"name": name, "value": value, "interval": ends}


def _lengths(evaluation: Evaluation) -> dict[str, Any]:
    """Returns how many captions and references have each length, as bars in percent of the highest bar."""
    captions = evaluation.diversity.lengths
    references = np.array([len(text.split()) for texts in evaluation.scores.reference_tokens for text in texts])
    # The few longest texts share the last bar, so that they do not squeeze the other bars.
    last = max(int(np.quantile(np.concatenate([captions, references]), 0.995)), 1)
    shares = [np.bincount(np.minimum(each, last), minlength=last + 1) / len(each) for each in (captions, references)]
    heights = 100 * np.array(shares) / np.max(shares)
    return {
        "words": TOKEN_NAMES[evaluation.scores.tokenizer],
        "caption_mean": captions.mean(),
        "reference_mean": references.mean(),
        "bars": [{"captions": round(own, 1), "references": round(other, 1)} for own, other in heights.T.tolist()],
        "label_every": -(-(last + 1) // 8),
        "cut": max(captions.max(), references.max()) > last,
    }


def _comparison_values(comparison: Comparison) -> dict[str, Any]:
    rows = [
        {
            "name": METRIC_NAMES[metric],
            "first": f"{100 * comparison.scores.corpus[metric]:.2f}",
            "other": f"{100 * comparison.other_scores.corpus[metric]:.2f}",
            "difference": f"{100 * (comparison.scores.corpus[metric] - comparison.other_scores.corpus[metric]):+.2f}",
            "interval": f"{100 * found.low:+.2f} to {100 * found.high:+.2f}" if found else "",
        }
        for metric in comparison.metrics
        for found in [comparison.differences.get(metric)]
    ]
    counts = comparison.counts if comparison.leads.size else None
    return {"name": comparison.name, "images": len(comparison.rows), "counts": counts, "rows": rows}


def _sheets(evaluation: Evaluation, examples: int, seed: int, open_picture: PictureOpener) -> Iterator[dict[str, Any]]:
    """Yields the groups of example images, each with `title`, `note` and `figures`."""

    def singles(rows: Sequence[int]) -> list[dict[str, Any]]:
        return [_figure(evaluation, row, open_picture) | _scored_caption(evaluation, row) for row in rows]

    if comparison := evaluation.comparison:
        leads = comparison.leads
        order = np.argsort(leads, kind="stable").tolist()
        won = [place for place in order[::-1] if leads[place] > 0][:examples]
        lost = [place for place in order if leads[place] < 0][:examples]
        for title, system, places in (("Wins", "first", won), ("Losses", "other", lost)):
            if places:
                figures = [
                    _figure(evaluation, comparison.rows[place], open_picture)
                    | _both_captions(evaluation, comparison, place)
                    for place in places
                ]
                note = f"Images on which the {system} system's CIDEr is higher by the largest margin."
                yield {"title": title, "note": note, "figures": figures}
    if "cider" in evaluation.scores.per_image:
        order = np.argsort(evaluation.scores.per_image["cider"], kind="stable").tolist()
        note = (
            "Images with the {} CIDEr. A caption that no reference resembles may still be right: look at the picture."
        )
        if count := min(examples, len(order) // 2):  # a single image is neither the best nor the worst
            yield {"title": "Best", "note": note.format("highest"), "figures": singles(order[::-1][:count])}
            yield {"title": "Worst", "note": note.format("lowest"), "figures": singles(order[:count])}
    images = len(evaluation.image_ids)
    drawn = random.Random(seed).sample(range(images), min(examples, images))
    yield {"title": "Random", "note": "Images chosen at random, which show what to expect.", "figures": singles(drawn)}


def _figure(evaluation: Evaluation, row: int, open_picture: PictureOpener) -> dict[str, Any]:
    """Returns an image's `picture`, or the `error` why there is none, with its `references` and `name`."""
    picture, error = None, None
    if (image := evaluation.images[row]) is not None:
        try:
            picture = make_thumbnail(open_picture(image), _THUMBNAIL_SIZE)
        except ImageError as reason:  # the picture was readable when its features were computed
            error = str(reason)
    name, references = str(evaluation.image_ids[row]), evaluation.references[row]
    return {"picture": picture, "error": error, "references": references, "name": name}


def _scored_caption(evaluation: Evaluation, row: int) -> dict[str, Any]:
    """Returns the caption of an image with its scores."""
    scores = evaluation.scores.per_image
    shown = [metric for metric in ("cider", "bleu_4", "rouge_l") if metric in scores]
    return {
        "captions": [{"text": evaluation.captions[row], "system": None}],
        "scores": [f"{METRIC_NAMES[metric]} {100 * scores[metric][row]:.0f}" for metric in shown],
    }


def _both_captions(evaluation: Evaluation, comparison: Comparison, place: int) -> dict[str, Any]:
    """Returns the captions of both systems, for the image at a place in `Comparison.rows`."""
    caption, other = evaluation.captions[comparison.rows[place]], comparison.captions[place]
    systems = (("first", caption, comparison.scores), ("other", other, comparison.other_scores))
    captions = [
        {"text": text, "system": system, "cider": f"{100 * scores.per_image['cider'][place]:.0f}"}
        for system, text, scores in systems
    ]
    return {"captions": captions, "scores": []}

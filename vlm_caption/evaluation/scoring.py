"""Scores captions against references, and against another system's captions."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..captioning.nll import rows_of_others
from ..core.errors import DataError, ImageError, ScorerMissingError
from ..data.bad_images import PictureOpener
from ..metrics import read_results
from ..metrics.bootstrap import Interval, compare, confidence_intervals, mean_interval
from ..metrics.clip_score import score_clip
from ..metrics.coco_files import ImageId, pair_captions
from ..metrics.diversity import Diversity, measure_diversity
from ..metrics.names import COCO_METRICS
from ..metrics.scoring import METRICS, Scores, score
from ..metrics.vqa import ANSWERS_A_QUESTION, score_vqa
from .result import Comparison, Evaluation


@dataclass(frozen=True)
class ScoringSettings:
    """What is computed of captions.

    Attributes:
        metrics: Some of `METRICS`.
        clip_model: The model of CLIPScore, a name on the Hub or a folder; None: CLIPScore is not computed.
        training_captions: All captions that the captioner was trained on, for the share of captions that are new.
        compare_with: A results file of the same images, or a folder with `results.json`.
        allow_missing: Compare on the images that both systems, or both files, have.
    """

    metrics: Collection[str] = METRICS
    clip_model: str | None = None
    training_captions: Sequence[str] | None = None
    compare_with: Path | None = None
    allow_missing: bool = False


@dataclass(frozen=True)
class Captioned:
    """Captions beside their references.

    Attributes:
        image_ids: The images' ids in results files.
        sources: What tells the images apart; several questions may be about one of them.
        images: Where each picture is, as an entry of a dataset's column `image`; None where that is not known.
        references: The references of each image.
        captions: The caption of each image; empty before they are written.
        asks: Whether captions and references are answers to questions.
    """

    image_ids: list[ImageId]
    sources: Sequence[ImageId]
    images: list[str | None]
    references: list[list[str]]
    captions: list[str]
    asks: bool = False


@dataclass(frozen=True)
class OtherSystem:
    """Another system's captions, by image id."""

    name: str
    captions: dict[ImageId, str]

    @classmethod
    def read(cls, path: Path | None) -> "OtherSystem | None":
        """Reads a results file, or `results.json` in a folder; returns None for None.

        Raises:
            DataError: The file cannot be read.
        """
        if path is None:
            return None
        return cls(str(path), read_results(path / "results.json" if path.is_dir() else path))

    def pair(self, captioned: Captioned, allow_missing: bool) -> tuple[list[int], list[str], list[ImageId]]:
        """Returns the rows that this system captioned too, its captions of them, and the ids of the other images.

        Raises:
            DataError: The images are not the same, and `allow_missing` does not permit it.
        """
        references = dict(zip(captioned.image_ids, captioned.references, strict=True))
        try:
            pairs = pair_captions(self.captions, references, allow_missing)
        except DataError as error:
            raise DataError(f"{self.name}: {error}") from error
        row_of = {image: row for row, image in enumerate(captioned.image_ids)}
        return [row_of[image] for image in pairs.image_ids], pairs.captions, pairs.missing


def score_captions(
    captioned: Captioned,
    settings: ScoringSettings,
    other: OtherSystem | None,
    open_picture: PictureOpener,
    **facts: Any,
) -> Evaluation:
    """Computes all scores of captions.

    Args:
        captioned: The captions and their references.
        settings: What is computed.
        other: The system to compare with.
        open_picture: Opens the pictures, for CLIPScore.
        **facts: The other attributes of [`Evaluation`], such as `name` and `loss`.

    Raises:
        DataError: The other system's images are not the same.
    """
    scores = score(captioned.captions, captioned.references, settings.metrics)
    groups = captioned.sources  # questions about one image stand and fall together
    intervals = confidence_intervals(scores, groups=groups)
    not_asked = {metric: "it was not asked for" for metric in COCO_METRICS if metric not in scores.corpus}
    not_computed = not_asked | scores.not_computed
    diversity = measure_diversity(captioned.captions, settings.training_captions, scores.tokenizer)
    intervals |= _diversity_intervals(diversity, groups)
    if diversity.is_unseen is None:
        not_computed["unseen"] = "there are no training captions to look for them in"
    clip_scores = _clip_scores(captioned, settings.clip_model, open_picture)
    if isinstance(clip_scores, str):
        not_computed["clip_score"], clip_scores = clip_scores, None
    else:
        intervals["clip_score"] = mean_interval(clip_scores, groups=groups)
    vqa_scores = _vqa_scores(captioned)
    if isinstance(vqa_scores, str):
        not_computed["vqa_accuracy"], vqa_scores = vqa_scores, None
    elif vqa_scores is not None:
        intervals["vqa_accuracy"] = mean_interval(vqa_scores, groups=groups)
    shuffled_cider, cider_gain = None, None
    if "cider" in scores.corpus and len(set(captioned.sources)) > 1:
        shuffled_cider, intervals["shuffled_cider"], cider_gain = _shuffled_cider(captioned, scores)
    return Evaluation(
        num_images=len(set(captioned.sources)),
        image_ids=captioned.image_ids,
        images=captioned.images,
        captions=captioned.captions,
        references=captioned.references,
        scores=scores,
        intervals=intervals,
        diversity=diversity,
        shuffled_cider=shuffled_cider,
        cider_gain=cider_gain,
        clip_scores=clip_scores,
        vqa_scores=vqa_scores,
        not_computed=not_computed,
        comparison=None if other is None else _compare(captioned, scores, other, settings),
        asks=captioned.asks,
        **facts,
    )


def _diversity_intervals(diversity: Diversity, groups: Sequence[ImageId]) -> dict[str, Interval]:
    means = {"mean_length": diversity.lengths, "repeated_4grams": diversity.repetitions}
    if diversity.is_unseen is not None:
        means["unseen"] = diversity.is_unseen
    return {name: mean_interval(values, groups=groups) for name, values in means.items()}


def _shuffled_cider(captioned: Captioned, scores: Scores) -> tuple[float, Interval, tuple[float, Interval]]:
    """Returns the CIDEr of captions given to other images, its interval, and what the right images add to it."""
    references = [captioned.references[row] for row in rows_of_others(captioned.sources)]
    shuffled = score(captioned.captions, references, ["cider"], tokenizer=scores.tokenizer)
    gains = scores.per_image["cider"] - shuffled.per_image["cider"]
    interval = mean_interval(shuffled.per_image["cider"], groups=captioned.sources)
    return shuffled.corpus["cider"], interval, (float(gains.mean()), mean_interval(gains, groups=captioned.sources))


def _vqa_scores(captioned: Captioned) -> np.ndarray | str | None:
    """Returns the VQA accuracy of each answer, or why there is none; None if no question has ten answers."""
    others = sum(len(answers) != ANSWERS_A_QUESTION for answers in captioned.references)
    if not captioned.asks or others == len(captioned.references):
        return None
    if others:
        return f"{others:,} of {len(captioned.references):,} questions do not have {ANSWERS_A_QUESTION} answers"
    return score_vqa(captioned.captions, captioned.references)


def _clip_scores(captioned: Captioned, model: str | None, open_picture: PictureOpener) -> np.ndarray | str:
    """Returns the CLIPScore of each caption, or why there is none."""
    if model is None:
        return "no --clip-model was given"
    if not all(captioned.images):
        return "CLIPScore needs all pictures: give their folder"
    try:
        return score_clip((open_picture(image) for image in captioned.images if image), captioned.captions, model)
    except (ScorerMissingError, ImageError) as error:
        return str(error)


def _compare(captioned: Captioned, scores: Scores, other: OtherSystem, settings: ScoringSettings) -> Comparison:
    rows, other_captions, missing = other.pair(captioned, settings.allow_missing)
    references = [captioned.references[row] for row in rows]
    if missing:
        captions = [captioned.captions[row] for row in rows]
        scores = score(captions, references, settings.metrics, tokenizer=scores.tokenizer)
    other_scores = score(other_captions, references, settings.metrics, tokenizer=scores.tokenizer)
    differences = compare(scores, other_scores, groups=[captioned.sources[row] for row in rows])
    return Comparison(other.name, rows, other_captions, scores, other_scores, differences, missing)

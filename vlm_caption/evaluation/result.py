"""The outcome of an evaluation: scores of captions, and the comparison of two systems."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..metrics.bootstrap import Difference, Interval
from ..metrics.coco_files import ImageId
from ..metrics.diversity import Diversity
from ..metrics.names import COCO_METRICS
from ..metrics.scoring import Scores


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same images.

    Attributes:
        name: The other system's name.
        rows: Which of the evaluation's images both systems captioned.
        captions: The other system's captions of these images.
        scores, other_scores: Both systems' scores on these images.
        differences: First minus other, for each metric that both have, METEOR excepted.
        missing: The images that the other system did not caption.
    """

    name: str
    rows: list[int]
    captions: list[str]
    scores: Scores
    other_scores: Scores
    differences: dict[str, Difference]
    missing: list[ImageId]

    @property
    def metrics(self) -> list[str]:
        """The metrics that both systems have."""
        return [name for name in self.scores.corpus if name in self.other_scores.corpus]

    @property
    def leads(self) -> np.ndarray:
        """By how much CIDEr each image's caption is better than the other's, [rows]; empty if not computed."""
        if "cider" not in self.differences:
            return np.empty(0)
        return self.scores.per_image["cider"] - self.other_scores.per_image["cider"]

    @property
    def counts(self) -> dict[str, int]:
        """The numbers of wins, losses and ties by CIDEr."""
        leads = self.leads
        return {"wins": int((leads > 0).sum()), "losses": int((leads < 0).sum()), "ties": int((leads == 0).sum())}

    def to_dict(self) -> dict[str, Any]:
        """Returns the comparison for JSON."""
        return {
            "name": self.name,
            "images": len(self.rows),
            "missing": len(self.missing),
            **self.counts,
            "metrics": {
                name: {
                    "first": self.scores.corpus[name],
                    "other": self.other_scores.corpus[name],
                    "difference": self.scores.corpus[name] - self.other_scores.corpus[name],
                    **(self.differences[name]._asdict() if name in self.differences else {}),
                }
                for name in self.metrics
            },
        }


@dataclass(frozen=True)
class Evaluation:
    """The scores of a set of captions, as fractions. `evaluation_table` prints them times 100.

    Attributes:
        name: The captioner or the results file.
        data: The images, in words.
        num_images: The number of images. If questions were asked, the lists below have an entry for each question.
        image_ids: The images' ids in results files; if questions were asked, with the question.
        images: Where each picture is, as an entry of a dataset's column `image`; None where that is not known.
        captions, references: The caption and the references of each image.
        scores: COCO's metrics.
        intervals: Bootstrap 95 % intervals of the corpus values, and of those numbers below that are means.
        diversity: How varied the captions are.
        shuffled_cider: CIDEr of the captions with the references of other images; None for a single image, or if
            CIDEr was not computed.
        cider_gain: How much of CIDEr is due to an image's own references, and the ends of its interval.
        loss: Nats per token of the references, end tokens included; None for a results file.
        shuffled_loss: The same with every reference beside another image; None also for a single image.
        max_caption_tokens: Where references were cut for the loss; None for a results file.
        cut_captions: How many references were cut there.
        clip_scores: CLIPScore of each caption; None if not computed.
        vqa_scores: VQA accuracy of each answer; None unless questions with ten answers each were asked.
        not_computed: Why a metric was not computed, by metric.
        missing, extra: The images left out because they have no caption, or no references.
        bad_images: Why pictures were left out, by file.
        generation: How captions were written: the checkpoint's settings of `generate`, and those in place of them.
        comparison: The comparison with another system.
        asks: Whether captions and references are answers to questions.
    """

    name: str
    data: str
    num_images: int
    image_ids: list[ImageId]
    images: list[str | None]
    captions: list[str]
    references: list[list[str]]
    scores: Scores
    intervals: dict[str, Interval]
    diversity: Diversity
    shuffled_cider: float | None
    cider_gain: tuple[float, Interval] | None
    loss: float | None = None
    shuffled_loss: float | None = None
    max_caption_tokens: int | None = None
    cut_captions: int = 0
    clip_scores: np.ndarray | None = None
    vqa_scores: np.ndarray | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    missing: list[ImageId] = field(default_factory=list)
    extra: list[ImageId] = field(default_factory=list)
    bad_images: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None
    asks: bool = False

    @property
    def metrics(self) -> dict[str, float | None]:
        """COCO's metrics and CLIPScore as fractions; None if not computed."""
        found = {name: self.scores.corpus.get(name) for name in COCO_METRICS}
        return found | {"clip_score": None if self.clip_scores is None else float(self.clip_scores.mean())}

    @property
    def vqa_accuracy(self) -> float | None:
        """VQA accuracy as a fraction; None if not computed."""
        return None if self.vqa_scores is None else float(self.vqa_scores.mean())

    @property
    def counted(self) -> str:
        """The number of images that were captioned, or of questions asked, in words."""
        count = len(self.image_ids)
        images = f"{self.num_images:,} images"
        if count == self.num_images:
            return images
        return f"{count:,} questions about {images}" if self.asks else f"{count:,} captions of {images}"

    @property
    def ignores_images(self) -> bool:
        """Whether nothing shows that the captions, or the loss, depend on the images."""
        by_loss = self.loss is not None and self.shuffled_loss is not None and self.shuffled_loss <= self.loss
        # Captions that share nothing with any references, as those in another language, say nothing by CIDEr.
        says = bool(self.shuffled_cider) or bool(self.scores.corpus.get("cider"))
        return by_loss or (says and self.cider_gain is not None and self.cider_gain[1].low <= 0)

    @property
    def notes(self) -> list[str]:
        """What a reader of the numbers has to know, one sentence each."""
        notes = []
        if self.missing or self.extra:
            notes.append(
                f"Only the {len(self.image_ids):,} images that have both a caption and references were scored: "
                f"{len(self.missing):,} without a caption and {len(self.extra):,} without references were left out."
            )
        if self.comparison and self.comparison.missing:
            notes.append(
                f"{self.comparison.name} has no caption of {len(self.comparison.missing):,} images: the comparison is "
                f"on the other {len(self.comparison.rows):,}."
            )
        for file, reason in list(self.bad_images.items())[:1]:
            notes.append(f"{len(self.bad_images):,} bad images were left out, first: {file}: {reason}.")
        if self.cut_captions:
            notes.append(
                f"{self.cut_captions:,} of {sum(map(len, self.references)):,} references are longer than "
                f"data.max_caption_tokens, {self.max_caption_tokens}, and were cut there for the loss."
            )
        if empty := [image for image, text in zip(self.image_ids, self.captions, strict=True) if not text.strip()]:
            notes.append(_empty_sentence(self.name, empty))
        if other := self.comparison:
            pairs = zip(other.rows, other.captions, strict=True)
            if empty := [self.image_ids[row] for row, text in pairs if not text.strip()]:
                notes.append(_empty_sentence(other.name, empty))
        notes += self.scores.notes
        if self.ignores_images:
            notes.append(self._image_sentence())
        return notes

    def _image_sentence(self) -> str:
        found = []
        if self.cider_gain is not None and self.shuffled_cider is not None:
            found.append(
                f"CIDEr is {100 * self.scores.corpus['cider']:.1f}, and {100 * self.shuffled_cider:.1f} with the "
                "references of other images"
            )
        if self.loss is not None and self.shuffled_loss is not None:
            found.append(f"the loss is {self.loss:.3f}, and {self.shuffled_loss:.3f} with other images")
        return f"Nothing shows that the captions depend on the images: {'; '.join(found)}."

    @property
    def not_computed_by_reason(self) -> dict[str, list[str]]:
        """The metrics of `not_computed`, by reason."""
        metrics: dict[str, list[str]] = {}
        for metric, reason in self.not_computed.items():
            metrics.setdefault(reason, []).append(metric)
        return metrics

    def to_dict(self) -> dict[str, Any]:
        """Returns all numbers, for JSON."""
        return {
            "name": self.name,
            "data": self.data,
            "images": self.num_images,
            **self.metrics,
            "vqa_accuracy": self.vqa_accuracy,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
            "tokenizer": self.scores.tokenizer,
            "not_computed": self.not_computed,
            "loss": self.loss,
            "shuffled_loss": self.shuffled_loss,
            "shuffled_cider": self.shuffled_cider,
            "ignores_images": self.ignores_images,
            "distinct_1": self.diversity.distinct_1,
            "distinct_2": self.diversity.distinct_2,
            "vocabulary": self.diversity.vocabulary,
            "mean_length": self.diversity.mean_length,
            "unseen": self.diversity.unseen,
            "repeated_4grams": self.diversity.repeated_4grams,
            "generation": self.generation,
            "cut_captions": self.cut_captions,
            "missing": len(self.missing),
            "extra": len(self.extra),
            "bad_images": [{"file": file, "reason": reason} for file, reason in self.bad_images.items()],
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "notes": self.notes,
        }


def _empty_sentence(name: str, images: list[ImageId]) -> str:
    examples = ", ".join(map(str, images[:3])) + (", …" if len(images) > 3 else "")
    return f"{len(images):,} captions of {name} are empty, image id {examples}."

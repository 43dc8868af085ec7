"""How good captions are: those that a captioner writes of a split, or those of somebody's results file.

    evaluation = evaluate(Captioner.from_pretrained("runs/mine"), load_captions("mine", "dev"))
    evaluation = evaluate_files("results.json", "captions_val2014.json")
    print(evaluation)
    write_evaluation("evaluation", evaluation)  # of evaluation_files.py

Scores are those of COCO's evaluation, with bootstrap intervals. Whether a captioner looks at its images at all is seen
by giving every caption, or every reference, to another image: what does not get worse by that does not depend on them.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset

from ..captioning.captioner import Captioner
from ..captioning.nll import caption_nll, rows_of_others
from ..core.errors import DataError, ImageError, ScorerMissingError
from ..data.bad_images import BadImages, PictureOpener
from ..data.collator import CaptionCollator
from ..data.corpus import Corpus, ask_one_by_one
from ..data.places import Place
from ..data.vectors import Vectors
from ..features.inputs import ImageInputs, with_index
from ..metrics import read_results
from ..metrics.bootstrap import Difference, Interval, compare, confidence_intervals, mean_interval
from ..metrics.clip_score import score_clip
from ..metrics.coco_files import ImageId, pair_captions, read_file_names, read_references
from ..metrics.diversity import Diversity, measure_diversity
from ..metrics.names import COCO_METRICS
from ..metrics.scoring import METRICS, Scores, score
from .captions import (
    BATCH_SIZE,
    UnfinishedCaptions,
    caption_settings,
    picture_settings,
    question_settings,
    vector_settings,
    write_captions,
)
from .table import evaluation_lines

# COCO's image ids are the numbers in its file names.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg")


@dataclass(frozen=True)
class Comparison:
    """Two systems on the same images.

    Attributes:
        name: of the other system.
        rows: which of the evaluation's images both captioned.
        captions: the other's, of these.
        scores, other_scores: of both on these images.
        differences: first minus other, of each metric that both have, METEOR excepted.
        missing: images that the other has no caption of.
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
        """By how much CIDEr each image's caption is better than the other's [rows]; empty where it is not computed."""
        if "cider" not in self.differences:
            return np.empty(0)
        return self.scores.per_image["cider"] - self.other_scores.per_image["cider"]

    @property
    def counts(self) -> dict[str, int]:
        """How many images are wins, losses and ties by CIDEr."""
        leads = self.leads
        return {"wins": int((leads > 0).sum()), "losses": int((leads < 0).sum()), "ties": int((leads == 0).sum())}

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
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
    """What some captions are worth. `str` of it is a table for people, values × 100; here all are fractions.

    Attributes:
        name: of the captioner or the results file.
        data: of the images, in words.
        num_images: how many images there are. Where questions were asked, the lists below have an entry for each.
        image_ids: what results files call the images; where questions were asked, with the question.
        images: where each picture is, as an entry of a dataset's column `image`; None where that is not known.
        captions, references: of each image.
        scores: of COCO's metrics.
        intervals: bootstrap 95 % intervals of the corpus values, and of those numbers below that are means.
        diversity: how varied the captions are.
        shuffled_cider: CIDEr of the captions beside the references of other images; None for a single image, or where
            CIDEr was not computed.
        cider_gain: how much of CIDEr an image's own references give, and the ends of its interval.
        loss: nats a token of the references, end tokens included; None for a results file.
        shuffled_loss: the same, every reference beside another image; None also for a single image.
        clip_scores: CLIPScore of each caption; None where not computed.
        not_computed: a sentence why, by metric.
        missing, extra: images left out because they have no caption, or no references.
        bad_images: why pictures were left out, by file.
        generation: settings of `generate` in place of the checkpoint's own.
        comparison: with another system.
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
    clip_scores: np.ndarray | None = None
    not_computed: dict[str, str] = field(default_factory=dict)
    missing: list[ImageId] = field(default_factory=list)
    extra: list[ImageId] = field(default_factory=list)
    bad_images: dict[str, str] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    comparison: Comparison | None = None

    @property
    def metrics(self) -> dict[str, float | None]:
        """COCO's metrics and CLIPScore as fractions, None where not computed."""
        found = {name: self.scores.corpus.get(name) for name in COCO_METRICS}
        return found | {"clip_score": None if self.clip_scores is None else float(self.clip_scores.mean())}

    @property
    def counted(self) -> str:
        """How many images were captioned, or questions asked, in words."""
        count = len(self.image_ids)
        about = f"{self.num_images:,} images"
        return about if count == self.num_images else f"{count:,} questions about {about}"

    @property
    def ignores_images(self) -> bool:
        """Whether nothing shows that the captions, or the loss, depend on the images."""
        by_loss = self.loss is not None and self.shuffled_loss is not None and self.shuffled_loss <= self.loss
        return by_loss or (self.cider_gain is not None and self.cider_gain[1].low <= 0)

    @property
    def notes(self) -> list[str]:
        """What has to be known beside the numbers, a sentence each."""
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
        """The metrics of `not_computed` that share a reason, by it."""
        metrics: dict[str, list[str]] = {}
        for metric, reason in self.not_computed.items():
            metrics.setdefault(reason, []).append(metric)
        return metrics

    def to_dict(self) -> dict[str, Any]:
        """All numbers, for JSON."""
        return {
            "name": self.name,
            "data": self.data,
            "images": self.num_images,
            **self.metrics,
            "intervals": {name: list(interval) for name, interval in self.intervals.items()},
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
            "missing": len(self.missing),
            "extra": len(self.extra),
            "bad_images": [{"file": file, "reason": reason} for file, reason in self.bad_images.items()],
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "notes": self.notes,
        }

    def __str__(self) -> str:
        return "\n".join(evaluation_lines(self))


def evaluate(
    captioner: Captioner,
    dataset: Dataset,
    *,
    name: str = "captioner",
    data: str = "data",
    generation: Mapping[str, Any] | None = None,
    training_captions: Iterable[str] | None = None,
    metrics: Collection[str] = METRICS,
    clip_model: str | None = None,
    compare_with: Path | None = None,
    allow_missing: bool = False,
    prompt: str = "",
    max_caption_tokens: int = 64,
    open_picture: PictureOpener | None = None,
    vectors: Vectors | None = None,
    bad: BadImages | None = None,
    unfinished: Path | None = None,
) -> Evaluation:
    """Captions the rows of `load_captions` and scores captions and captioner.

    Every picture is opened once, for its features, or not at all where these are cached; losses and captions are both
    made from them.

    Args:
        captioner: the one to score.
        dataset: columns `image` and `captions`; and `questions`, each of which is then asked and scored on its own,
            with the answers to it as references.
        name, data: what captioner and images are called in tables and reports.
        generation: settings of `generate` in place of the checkpoint's own.
        training_captions: all that the captioner learnt from, for the share of captions that are none of them.
        metrics: of `METRICS`.
        clip_model: of CLIPScore, a name on the Hub or a folder; None: it is not computed.
        compare_with: a results file, or a folder with `results.json`, of the same images.
        allow_missing: compare on the images that both have.
        prompt: around the image; by default as the captioner was trained.
        max_caption_tokens: as in training.
        open_picture: by default within the limits of `open_image`.
        vectors: what the captions are of, where that is no pictures; `image` is then the name of a row of them.
        bad: gets the pictures that cannot be opened, which are left out.
        unfinished: keeps captions as they are written: a call that was killed goes on from there if it is repeated.
            Removed at the end.

    Raises:
        ImageError: if a picture cannot be read, and `bad` is not given.
        DataError: if no picture or too many cannot be read, a vector holds a number that is not finite, files cannot
            be written, or `compare_with` does not fit.
        ValueError: if the captioner takes vectors and none are given, or others.
    """
    other = None if compare_with is None else _read_other(compare_with)
    open_picture = open_picture or PictureOpener()
    generation = dict(generation or {})
    asks = "questions" in dataset.column_names
    if asks:
        dataset = ask_one_by_one(dataset)
    if bad is not None and vectors is None:
        bad.expect(len(set(dataset["image"])))
    model, processor = captioner.model, captioner.processor
    if (vectors is None) != (model.config.feature_size is None):
        takes = "pictures" if vectors is not None else "vectors"
        raise ValueError(
            f"This captioner takes {takes}: {'leave out' if vectors is not None else 'give'} data.features."
        )
    images = ImageInputs(
        model, processor, dataset["image"], cache=True, open_picture=open_picture, bad=bad, vectors=vectors
    )
    if isinstance(images.features, Vectors):
        captioner.check_vectors(images.features)
    dataset = images.keep(dataset)
    if len(dataset) == 0:
        raise DataError(f"{data}: none of the images can be opened")
    dataset = with_index(dataset)
    references = list(dataset["captions"])
    sources = list(dataset["image"])
    distinct = list(dict.fromkeys(sources))
    id_of = dict(zip(distinct, _image_ids(distinct) if vectors is None else distinct, strict=True))
    image_ids: list[ImageId] = [id_of[source] for source in sources]
    if asks:
        questions = [texts[0] for texts in dataset["questions"]]
        image_ids = [f"{image}: {question}" for image, question in zip(image_ids, questions, strict=True)]
    if other is not None:
        _pair(other, image_ids, references, allow_missing)  # what is wrong with them, before the work

    collator = CaptionCollator(
        processor,
        images,
        prompt=prompt,
        max_caption_tokens=max_caption_tokens,
        positions=model.config.text_positions,
    )
    of_inputs = (
        vector_settings(images.features)
        if isinstance(images.features, Vectors)
        else picture_settings(captioner, dataset["image"], open_picture)
    )
    kept = UnfinishedCaptions(
        unfinished, caption_settings(captioner, collator, generation) | of_inputs | question_settings(dataset)
    )
    captions = write_captions(captioner, dataset, collator, generation, kept)
    loss = caption_nll(model, dataset, collator, BATCH_SIZE)
    shuffled_loss = None
    if len(distinct) > 1:
        shuffled_loss = caption_nll(model, dataset, collator, BATCH_SIZE, shuffle_images=True)
    evaluation = _score(
        captions,
        references,
        name=name,
        data=data,
        sources=sources,
        image_ids=image_ids,
        images=list(sources) if vectors is None else [None] * len(dataset),
        training_captions=training_captions,
        metrics=metrics,
        clip_model=clip_model,
        open_picture=open_picture,
        other=other,
        allow_missing=allow_missing,
        loss=loss,
        shuffled_loss=shuffled_loss,
        bad_images={} if bad is None else bad.reasons,
        generation=generation,
    )
    kept.remove()
    return evaluation


def evaluate_files(
    results: str | Path,
    references: str | Path,
    *,
    allow_missing: bool = False,
    images_dir: str | Path | None = None,
    metrics: Collection[str] = METRICS,
    clip_model: str | None = None,
    compare_with: Path | None = None,
    open_picture: PictureOpener | None = None,
) -> Evaluation:
    """Scores captions in COCO's results format against references in COCO's annotations format.

    Args:
        results, references: the files.
        allow_missing: score the images that both have, where they differ; `notes` of the result says so.
        images_dir: the folder of the pictures that the references name as `file_name`, for the report and CLIPScore.
        metrics, clip_model, compare_with, open_picture: as of `evaluate`.

    Raises:
        DataError: if a file cannot be read or has not these formats, or images are missing.
    """
    other = None if compare_with is None else _read_other(compare_with)
    pairs = pair_captions(read_results(results), read_references(references), allow_missing)
    if other is not None:
        _pair(other, pairs.image_ids, pairs.references, allow_missing)
    images: list[str | None] = [None] * len(pairs.image_ids)
    if images_dir is not None:
        names = read_file_names(references)
        paths = [Path(images_dir) / names[image] if image in names else None for image in pairs.image_ids]
        images = [str(path) if path is not None and path.is_file() else None for path in paths]
        if not any(images):
            raise DataError(f"{images_dir}: none of the pictures that {references} names is there")
    return _score(
        pairs.captions,
        pairs.references,
        name=str(results),
        data=str(references),
        sources=pairs.image_ids,
        image_ids=pairs.image_ids,
        images=images,
        training_captions=None,
        metrics=metrics,
        clip_model=clip_model,
        open_picture=open_picture or PictureOpener(),
        other=other,
        allow_missing=allow_missing,
        missing=pairs.missing,
        extra=pairs.extra,
    )


def training_captions(corpus: Corpus, split: str) -> list[str] | None:
    """All captions of a corpus's training split, whether its pictures are there or not; None if it has no such split.

    Args:
        corpus: as of `open_corpus`.
        split: the name of the training split.

    Raises:
        DataError: if the split cannot be read.
    """
    if split not in corpus.splits:
        return None
    missing: list[Any] = []
    dataset = corpus.load(split, on_missing=missing.append)
    return [caption for texts in dataset["captions"] for caption in texts] or None


def _score(
    captions: list[str],
    references: list[list[str]],
    *,
    sources: Sequence[ImageId],
    image_ids: list[ImageId],
    images: list[str | None],
    training_captions: Iterable[str] | None,
    metrics: Collection[str],
    clip_model: str | None,
    open_picture: PictureOpener,
    other: tuple[str, dict[ImageId, str]] | None,
    allow_missing: bool,
    **facts: Any,
) -> Evaluation:
    scores = score(captions, references, metrics)
    intervals = confidence_intervals(scores)
    not_computed = dict(scores.not_computed)
    for metric in COCO_METRICS:
        if metric not in scores.corpus and metric not in not_computed:
            not_computed[metric] = "it was not asked for"
    diversity = measure_diversity(captions, training_captions)
    intervals["mean_length"] = mean_interval(diversity.lengths)
    intervals["repeated_4grams"] = mean_interval(diversity.repetitions)
    if diversity.is_unseen is not None:
        intervals["unseen"] = mean_interval(diversity.is_unseen)
    else:
        not_computed["unseen"] = "there are no training captions to look for them in"
    clip_scores = None
    if clip_model is None:
        not_computed["clip_score"] = "no --clip-model was given"
    elif not all(images):
        not_computed["clip_score"] = "CLIPScore needs all pictures: give their folder"
    else:
        try:
            clip_scores = score_clip((open_picture(image) for image in images if image), captions, clip_model)
            intervals["clip_score"] = mean_interval(clip_scores)
        except (ScorerMissingError, ImageError) as error:
            not_computed["clip_score"] = str(error)
    shuffled_cider, cider_gain = None, None
    num_images = len(set(sources))
    if "cider" in scores.corpus and num_images > 1:
        shuffled = score(captions, [references[row] for row in rows_of_others(sources)], ["cider"])
        shuffled_cider = shuffled.corpus["cider"]
        gains = scores.per_image["cider"] - shuffled.per_image["cider"]
        cider_gain = float(gains.mean()), mean_interval(gains)
        intervals["shuffled_cider"] = mean_interval(shuffled.per_image["cider"])
    return Evaluation(
        num_images=num_images,
        image_ids=image_ids,
        images=images,
        captions=captions,
        references=references,
        scores=scores,
        intervals=intervals,
        diversity=diversity,
        shuffled_cider=shuffled_cider,
        cider_gain=cider_gain,
        clip_scores=clip_scores,
        not_computed=not_computed,
        comparison=other and _compare(other, scores, image_ids, captions, references, metrics, allow_missing),
        **facts,
    )


def _empty_sentence(name: str, images: list[ImageId]) -> str:
    examples = ", ".join(map(str, images[:3])) + (", …" if len(images) > 3 else "")
    return f"{len(images):,} captions of {name} are empty, image id {examples}."


def _read_other(path: Path) -> tuple[str, dict[ImageId, str]]:
    file = path / "results.json" if path.is_dir() else path
    return str(path), read_results(file)


def _pair(
    other: tuple[str, dict[ImageId, str]],
    image_ids: list[ImageId],
    references: list[list[str]],
    allow_missing: bool,
) -> tuple[list[int], list[str], list[ImageId]]:
    """Rows of which the other system has captions, these, and the images of which it has none."""
    name, captions = other
    try:
        pairs = pair_captions(captions, dict(zip(image_ids, references, strict=True)), allow_missing)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error
    row_of = {image: row for row, image in enumerate(image_ids)}
    return [row_of[image] for image in pairs.image_ids], pairs.captions, pairs.missing


def _compare(
    other: tuple[str, dict[ImageId, str]],
    scores: Scores,
    image_ids: list[ImageId],
    captions: list[str],
    references: list[list[str]],
    metrics: Collection[str],
    allow_missing: bool,
) -> Comparison:
    rows, other_captions, missing = _pair(other, image_ids, references, allow_missing)
    chosen = [references[row] for row in rows]
    if missing:
        scores = score([captions[row] for row in rows], chosen, metrics)
    other_scores = score(other_captions, chosen, metrics)
    differences = compare(scores, other_scores)
    return Comparison(other[0], rows, other_captions, scores, other_scores, differences, missing)


def _image_ids(images: Sequence[str]) -> list[ImageId]:
    """COCO's number where the files are COCO's; else the file's name, or all of the place if names are not unique."""
    names = [Place.parse(image).short_name for image in images]
    matches = [_COCO_NAME.fullmatch(name) for name in names]
    ids: list[ImageId] = [int(match[1]) if match else name for match, name in zip(matches, names, strict=True)]
    if all(matches) and len(set(ids)) == len(ids):
        return ids
    times = Counter(names)
    return [name if times[name] == 1 else image for name, image in zip(names, images, strict=True)]

"""Evaluates captions: those that a captioner writes of a split, or those of a results file.

    evaluation = evaluate(Captioner.from_pretrained("runs/mine"), load_captions("mine", "dev"))
    evaluation = evaluate_files("results.json", "captions_val2014.json")
    print(evaluation_table(evaluation))  # of evaluation/table.py
    write_evaluation("evaluation", evaluation)  # of evaluation/files.py

Scores are those of COCO's evaluation, with bootstrap intervals. Every caption, or every reference, is also given to
another image: a score that does not fall by it does not depend on the images.
"""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from datasets import Dataset

from ..captioning.captioner import Captioner
from ..captioning.nll import paired_nll
from ..config.sections import GenerationSection
from ..core.errors import DataError
from ..data.bad_images import BadImages, PictureOpener
from ..data.collator import CaptionCollator
from ..data.corpora import Corpora
from ..data.corpus import Corpus, ask_one_by_one
from ..data.places import Place
from ..data.vectors import Vectors
from ..features.inputs import ImageInputs, with_index
from ..metrics import read_results
from ..metrics.coco_files import ImageId, pair_captions, read_file_names, read_references
from .captions import write_captions
from .result import Comparison, Evaluation
from .scoring import Captioned, OtherSystem, ScoringSettings, score_captions

# COCO's image ids are the numbers in its file names.
_COCO_NAME = re.compile(r"(?:COCO_[a-z]+\d{4}_)?(\d{12})\.jpg")


@dataclass(frozen=True)
class InputSettings:
    """How a captioner is shown the images, as in training.

    Attributes:
        prompt: Text around the image; by default as the captioner was trained.
        max_caption_tokens: Where references are cut for the loss.
        open_picture: Opens the pictures; by default within the limits of `open_image`.
        vectors: The inputs of a captioner of vectors; the column `image` then holds the names of their rows.
        bad: Gets the pictures that cannot be opened, which are left out. By default the first one raises its error.
    """

    prompt: str = ""
    max_caption_tokens: int = 64
    open_picture: PictureOpener = field(default_factory=PictureOpener)
    vectors: Vectors | None = None
    bad: BadImages | None = None


def evaluate(
    captioner: Captioner,
    dataset: Dataset,
    *,
    name: str = "captioner",
    data: str = "data",
    generation: Mapping[str, Any] | None = None,
    inputs: InputSettings | None = None,
    scoring: ScoringSettings | None = None,
    unfinished: Path | None = None,
) -> Evaluation:
    """Captions the rows of `load_captions` and scores captions and captioner.

    Every picture is opened once, for its features, or not at all if these are cached. Losses and captions are both
    made from them.

    Args:
        captioner: The captioner to score.
        dataset: The columns `image` and `captions`; and `questions`, each of which is then asked and scored on its
            own, with the answers to it as references.
        name: The name of the captioner in tables and reports.
        data: The name of the images in tables and reports.
        generation: Settings of `generate` in place of the checkpoint's own.
        inputs: How the images are shown.
        scoring: What is computed.
        unfinished: A file that keeps captions as they are written: if the call is killed and repeated, it resumes
            there. It is removed at the end.

    Raises:
        ImageError: A picture cannot be read, and `inputs.bad` is not given.
        DataError: No picture, or too few of them, can be read; a vector holds a number that is not finite; files
            cannot be written; or `scoring.compare_with` does not fit.
        ValueError: The captioner takes vectors and none are given, or others.
    """
    inputs, scoring, generation = inputs or InputSettings(), scoring or ScoringSettings(), dict(generation or {})
    other = OtherSystem.read(scoring.compare_with)
    dataset, images = open_rows(captioner, dataset, inputs, data)
    captioned = _without_captions(dataset, inputs)
    if other is not None:
        other.pair(captioned, scoring.allow_missing)  # what is wrong with them, before the work
    collator = make_collator(captioner, images, inputs)
    with write_captions(captioner, dataset, collator, generation, unfinished) as captions:
        captioned.captions.extend(captions)
        loss, shuffled_loss = paired_nll(captioner.model, dataset, collator)
        return score_captions(
            captioned,
            scoring,
            other,
            inputs.open_picture,
            name=name,
            data=data,
            bad_images={} if inputs.bad is None else inputs.bad.reasons,
            generation=_own_generation(captioner) | generation,
            loss=loss,
            shuffled_loss=shuffled_loss,
            max_caption_tokens=inputs.max_caption_tokens,
            cut_captions=collator.count_cut(list(dataset)),
        )


def evaluate_files(
    results: str | Path,
    references: str | Path,
    *,
    images_dir: str | Path | None = None,
    scoring: ScoringSettings | None = None,
    open_picture: PictureOpener | None = None,
) -> Evaluation:
    """Scores captions in COCO's results format against references in COCO's annotations format.

    Args:
        results: The file of captions.
        references: The file of references.
        images_dir: The folder of the pictures that the references name as `file_name`, for the report and CLIPScore.
        scoring: What is computed. With `allow_missing`, the images that both files have are scored, and `notes` of
            the result says how many were left out.
        open_picture: Opens the pictures; by default within the limits of `open_image`.

    Raises:
        DataError: A file cannot be read or does not have these formats, or images are missing.
    """
    scoring = scoring or ScoringSettings()
    other = OtherSystem.read(scoring.compare_with)
    pairs = pair_captions(read_results(results), read_references(references), scoring.allow_missing)
    images: list[str | None] = [None] * len(pairs.image_ids)
    captioned = Captioned(pairs.image_ids, pairs.image_ids, images, pairs.references, pairs.captions)
    if other is not None:
        other.pair(captioned, scoring.allow_missing)
    if images_dir is not None:
        names = read_file_names(references)
        paths = [Path(images_dir) / names[image] if image in names else None for image in pairs.image_ids]
        images[:] = [str(path) if path is not None and path.is_file() else None for path in paths]
        if not any(images):
            raise DataError(f"{images_dir}: none of the pictures that {references} names is there")
    return score_captions(
        captioned,
        scoring,
        other,
        open_picture or PictureOpener(),
        name=str(results),
        data=str(references),
        missing=pairs.missing,
        extra=pairs.extra,
    )


def training_captions(corpus: Corpus | Corpora, split: str) -> list[str] | None:
    """Returns all captions of a corpus's training split, even of pictures that are missing; None without the split.

    Args:
        corpus: What `open_data` returns.
        split: The name of the training split.

    Raises:
        DataError: The split cannot be read.
    """
    if split not in corpus.splits:
        return None
    missing: list[Any] = []
    dataset = corpus.load(split, on_missing=missing.append)
    return [caption for texts in dataset["captions"] for caption in texts] or None


def open_rows(captioner: Captioner, dataset: Dataset, inputs: InputSettings, data: str) -> tuple[Dataset, ImageInputs]:
    """Returns the rows whose images can be opened, one row for each question if there are any, and the features.

    Raises:
        ImageError, DataError, ValueError: See `evaluate`.
    """
    if "questions" in dataset.column_names:
        dataset = ask_one_by_one(dataset)
    images = open_images(captioner, dataset, inputs)
    dataset = with_index(images.keep(dataset))
    if len(dataset) == 0:
        raise DataError(f"{data}: none of the images can be opened")
    return dataset, images


def open_images(captioner: Captioner, dataset: Dataset, inputs: InputSettings) -> ImageInputs:
    """Returns the images' features.

    Raises:
        ImageError, DataError, ValueError: See `evaluate`.
    """
    vectors = inputs.vectors
    if (vectors is None) != (captioner.model.config.feature_size is None):
        takes, what_to_do = ("pictures", "leave out") if vectors is not None else ("vectors", "give")
        raise ValueError(f"This captioner takes {takes}: {what_to_do} data.features.")
    if inputs.bad is not None and vectors is None:
        inputs.bad.expect(len(set(dataset["image"])))
    images = ImageInputs(
        captioner.model,
        captioner.processor,
        dataset["image"],
        cache=True,
        open_picture=inputs.open_picture,
        bad=inputs.bad,
        vectors=vectors,
    )
    if isinstance(images.features, Vectors):
        captioner.check_vectors(images.features)
    return images


def make_collator(captioner: Captioner, images: ImageInputs, inputs: InputSettings) -> CaptionCollator:
    """Returns the collator that shows the captioner images and references."""
    return CaptionCollator(
        captioner.processor,
        images,
        prompt=inputs.prompt,
        max_caption_tokens=inputs.max_caption_tokens,
        positions=captioner.model.config.text_positions(),
    )


def _without_captions(dataset: Dataset, inputs: InputSettings) -> Captioned:
    """Returns the images and references of a dataset whose captions are still to be written."""
    asks = "questions" in dataset.column_names
    sources = list(dataset["image"])
    distinct = list(dict.fromkeys(sources))
    id_of = dict(zip(distinct, _image_ids(distinct) if inputs.vectors is None else distinct, strict=True))
    image_ids: list[ImageId] = [id_of[source] for source in sources]
    if asks:
        questions = [texts[0] for texts in dataset["questions"]]
        image_ids = [f"{image}: {' '.join(text.split())}" for image, text in zip(image_ids, questions, strict=True)]
    image_ids = _number_repeats(image_ids)
    images = list(sources) if inputs.vectors is None else [None] * len(sources)
    return Captioned(image_ids, sources, images, list(dataset["captions"]), [], asks)


def _number_repeats(ids: Sequence[ImageId]) -> list[ImageId]:
    """Returns ids of which none occurs twice. One image may be in several corpora, each with captions of its own."""
    seen: Counter[ImageId] = Counter()
    numbered: list[ImageId] = []
    for image_id in ids:
        seen[image_id] += 1
        numbered.append(image_id if seen[image_id] == 1 else f"{image_id} ({seen[image_id]})")
    return numbered


def _own_generation(captioner: Captioner) -> dict[str, Any]:
    """Returns the generation settings of the checkpoint that an evaluation can change and that are no defaults."""
    own = captioner.model.generation_config.to_diff_dict()
    return {setting.name: own[setting.name] for setting in fields(GenerationSection) if own.get(setting.name)}


def _image_ids(images: Sequence[str]) -> list[ImageId]:
    """Returns COCO's numbers if all files are COCO's, else file names, or whole places where names are not unique."""
    names = [Place.parse(image).short_name for image in images]
    matches = [_COCO_NAME.fullmatch(name) for name in names]
    ids: list[ImageId] = [int(match[1]) if match else name for match, name in zip(matches, names, strict=True)]
    if all(matches) and len(set(ids)) == len(ids):
        return ids
    times = Counter(names)
    return [name if times[name] == 1 else image for name, image in zip(names, images, strict=True)]


__all__ = [
    "Comparison",
    "Evaluation",
    "InputSettings",
    "ScoringSettings",
    "evaluate",
    "evaluate_files",
    "training_captions",
]

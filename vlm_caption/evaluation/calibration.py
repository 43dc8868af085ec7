"""Fits confidences to a captioner, and measures them on pictures that they were not fitted on.

    calibration = calibrate(captioner, load_captions("mine", "dev"), load_captions("mine", "train"))
    calibration.confidence.save("runs/mine")
    print(calibration.report)

A caption is *right* here if it tells its picture apart: if its CIDEr-D with the references of its own image is above
that with the references of most other images, by default of 95 % of them.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from PIL import Image

from ..captioning.caption_file import CaptionFile
from ..captioning.captioner import Captioner
from ..captioning.confidence import CAPTION_SIGNALS, Confidence, KnownPictures, Regressions
from ..captioning.generation import GenerationSettings, generate, token_log_probs
from ..captioning.signals import measure_signals, pooled
from ..core.console import progress
from ..core.errors import DataError
from ..data.collator import CaptionCollator
from ..features.inputs import ImageInputs
from ..metrics.bootstrap import number_groups
from ..towers.fingerprints import weights_fingerprint
from .calibration_report import CalibrationReport
from .captions import BATCH_SIZE, caption_settings, open_unfinished, picture_settings, question_settings
from .evaluate import InputSettings, make_collator, open_images, open_rows
from .fitting import fit_known_pictures, fit_regression
from .negatives import draw_negatives
from .rightness import shares_below

# Fewer captions are too few to fit six numbers on each half of them.
MIN_IMAGES = 40

_PHOTOS_TO_SHUFFLE = 16

# The share of photos that count as odd: the rest count as pictures of a known kind.
_ODD_PHOTOS = 0.05


@dataclass(frozen=True)
class CalibrationSettings:
    """How confidences are fitted.

    Attributes:
        right_share: A caption is right if its CIDEr-D with its own references is above that with the references of
            this share of the other images.
        negatives: How many pictures are drawn of each kind that no caption is right for.
        seed: Of the halves and of the drawn pictures.

    Raises:
        ValueError: A setting is out of range.
    """

    right_share: float = 0.95
    negatives: int = 20
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.right_share < 1:
            raise ValueError(f"right_share must be above 0 and below 1, got {self.right_share}.")
        if self.negatives < 2:
            raise ValueError(f"negatives must be at least 2, got {self.negatives}.")


@dataclass(frozen=True)
class Calibration:
    """What [`calibrate`] returns: the confidences to save, and how good they are."""

    confidence: Confidence
    report: CalibrationReport


@dataclass(frozen=True)
class Negatives:
    """Captions of pictures that no caption is right for.

    Attributes:
        signals: Their `SIGNALS`, float64 [M, 5].
        kinds: The kind of each picture [M].
    """

    signals: np.ndarray
    kinds: np.ndarray

    def select(self, rows: np.ndarray) -> "Negatives":
        """Returns some of them; `rows` bool [M]."""
        return Negatives(self.signals[rows], self.kinds[rows])


def calibrate(
    captioner: Captioner,
    dataset: Dataset,
    trained_on: Dataset,
    *,
    data: str = "data",
    generation: Mapping[str, Any] | None = None,
    inputs: InputSettings | None = None,
    settings: CalibrationSettings | None = None,
    unfinished: Path | None = None,
) -> Calibration:
    """Fits confidences on images that the captioner was not trained on.

    Args:
        captioner: The captioner.
        dataset: Images with references that it was not trained on, as `load_captions` returns them.
        trained_on: Images that it was trained on. Only their features are used, and only means over many of them kept.
        data: The name of the images, for the report.
        generation: Settings of `generate` in place of the checkpoint's own.
        inputs: How the images are shown.
        settings: How confidences are fitted.
        unfinished: A file that keeps captions as they are written: if the call is killed and repeated, it resumes
            there. It is removed at the end.

    Raises:
        ImageError: A picture cannot be read, and `inputs.bad` is not given.
        DataError: There are too few images, or nothing to tell apart: all captions are right, or none is.
        ValueError: The captioner takes vectors.
    """
    inputs, settings, generation = inputs or InputSettings(), settings or CalibrationSettings(), dict(generation or {})
    if captioner.model.config.feature_size is not None:
        raise ValueError("This captioner takes vectors, and confidences are fitted to captions of pictures.")
    dataset, images = open_rows(captioner, dataset, inputs, data)
    if len(dataset) < MIN_IMAGES:
        raise DataError(f"{data}: {len(dataset)} images are too few to fit confidences on: give at least {MIN_IMAGES}")
    collator = make_collator(captioner, images, inputs)
    pictures = fit_known_pictures(_pooled(open_images(captioner, trained_on, inputs)))
    texts, signals = _measure_photos(captioner, dataset, collator, generation, unfinished)
    rows = list(dataset)
    shown = [pooled(images(rows[i : i + 256])["image_features"]) for i in range(0, len(rows), 256)]
    photos = np.column_stack([signals, pictures.log_distances(np.concatenate(shown))])
    negatives = _measure_negatives(captioner, collator, rows[0], pictures, generation, _shufflable(images), settings)
    cider, shares = shares_below(texts, dataset["captions"], dataset["image"])
    is_right = shares >= settings.right_share
    if is_right.all() or not is_right.any():
        raise DataError(f"{data}: {'all' if is_right.all() else 'none'} of the captions are right: give more images")
    is_first = half_of(dataset["image"], settings.seed)
    report = _cross_fit(photos, is_right, cider, negatives, is_first)
    facts = {
        "data": data,
        "images": len(dataset),
        "images_trained_on": len(trained_on),
        "negatives": len(negatives.kinds),
        "right_share": settings.right_share,
        "generation": generation,
    }
    weights = weights_fingerprint(captioner.model)
    return Calibration(
        Confidence(_fit(photos, is_right, negatives), pictures, weights, facts, report.to_dict()), report
    )


def _fit(photos: np.ndarray, is_right: np.ndarray, negatives: Negatives) -> Regressions:
    is_photo = np.arange(len(photos) + len(negatives.kinds)) < len(photos)
    known = fit_regression(np.concatenate([photos, negatives.signals]), is_photo, balanced=True)
    usual = float(np.quantile(known.probability(photos), _ODD_PHOTOS))
    return Regressions(fit_regression(photos, is_right), known, usual)


def half_of(images: Sequence[str], seed: int) -> np.ndarray:
    """Returns which rows belong to one random half of the images, bool [N]. Several rows may be about one image."""
    numbers = number_groups(images)
    count = int(numbers.max()) + 1
    is_first = np.random.default_rng(seed).permutation(count) < count // 2
    return is_first[numbers]


def _cross_fit(
    photos: np.ndarray, is_right: np.ndarray, cider: np.ndarray, negatives: Negatives, is_first: np.ndarray
) -> CalibrationReport:
    """Returns how good confidences are on each half of the images if they are fitted on the other half.

    The confidences of drawn pictures are from fits on photos and on the other *kinds* of drawn pictures: they tell
    what to expect of a kind of picture that was never drawn.
    """
    confidences = np.zeros(len(photos))
    for half in (is_first, ~is_first):
        fitted = _fit(photos[~half], is_right[~half], negatives)
        confidences[half] = fitted.probabilities(photos[half])
    unseen = np.zeros(len(negatives.kinds))
    for kind in dict.fromkeys(negatives.kinds):
        of_kind = negatives.kinds == kind
        fitted = _fit(photos, is_right, negatives.select(~of_kind))
        unseen[of_kind] = fitted.probabilities(negatives.signals[of_kind])
    return CalibrationReport(confidences, is_right, cider, unseen, negatives.kinds, photos[:, 0])


def _pooled(images: ImageInputs) -> np.ndarray:
    """Returns the pooled features of images, float64 [I, D]."""
    assert images.features is not None
    rows = list(images.rows)
    return np.concatenate([pooled(images.features[rows[i : i + 256]]) for i in range(0, len(rows), 256)])


def _shufflable(images: ImageInputs) -> list[Image.Image]:
    step = max(1, len(images.rows) // _PHOTOS_TO_SHUFFLE)
    return [images.open_picture(images.images[row]) for row in list(images.rows)[::step][:_PHOTOS_TO_SHUFFLE]]


def _measure_photos(
    captioner: Captioner,
    dataset: Dataset,
    collator: CaptionCollator,
    generation: dict[str, Any],
    unfinished: Path | None,
) -> tuple[list[str], np.ndarray]:
    """Returns the caption of each row and its `CAPTION_SIGNALS`, float64 [N, 4]; see `write_captions` for the file."""
    images = collator.encode_images
    assert isinstance(images, ImageInputs)

    def write(done: int, file: CaptionFile | None) -> Iterator[dict[str, Any]]:
        for start in range(done, len(dataset), BATCH_SIZE):
            rows = [dataset[row] for row in range(start, min(start + BATCH_SIZE, len(dataset)))]
            prompts = [collator.prompt_ids(row) for row in rows]
            measured = _measure(captioner, prompts, collator.encode_images(rows)["image_features"], generation, start)
            new = [
                {"image": str(row["image"]), "caption": text, "signals": signals}
                for row, (text, signals) in zip(rows, measured, strict=True)
            ]
            if file is not None:
                file.add_entries(new)
            yield from new

    def run(file: CaptionFile | None) -> tuple[list[str], np.ndarray]:
        entries = [] if file is None else list(file.entries)
        done = len(entries)
        entries += progress(write(done, file), total=len(dataset) - done, desc="captions")
        signals = np.array([entry["signals"] for entry in entries])
        return [entry["caption"] for entry in entries], signals

    if unfinished is None:
        return run(None)
    kept = caption_settings(captioner, collator, generation) | question_settings(dataset)
    kept |= picture_settings(captioner, dataset["image"], images.open_picture) | {"signals": list(CAPTION_SIGNALS)}
    with open_unfinished(unfinished, kept) as file:
        measured = run(file)
        file.remove()
    return measured


@torch.inference_mode()
def _measure(
    captioner: Captioner,
    prompts: Sequence[list[int]],
    features: torch.Tensor,
    generation: dict[str, Any],
    seed: int,
) -> list[tuple[str, list[float]]]:
    """Returns the caption of each picture and its `CAPTION_SIGNALS`; `features` float [I, N, D_vision]."""
    model, processor = captioner.model, captioner.processor
    features = features.to(model.device)
    settings = GenerationSettings.from_arguments(generation | {"seed": seed})
    settings = replace(settings, generate={**settings.generate, "num_return_sequences": 1})
    written = generate(model, processor, prompts, {"image_features": features}, settings)
    signals = measure_signals(model, processor, written, token_log_probs(model, written, features))
    return list(zip(written.texts, signals.tolist(), strict=True))


@torch.inference_mode()
def _measure_negatives(
    captioner: Captioner,
    collator: CaptionCollator,
    row: dict[str, Any],
    pictures: KnownPictures,
    generation: dict[str, Any],
    photos: list[Image.Image],
    settings: CalibrationSettings,
) -> Negatives:
    """Captions drawn pictures, with the prompt of a row."""
    drawn = draw_negatives(settings.negatives, photos, settings.seed)
    signals = []
    for start in progress(range(0, len(drawn), BATCH_SIZE), desc="drawn pictures"):
        batch = [image for _, image in drawn[start : start + BATCH_SIZE]]
        pixels = captioner.processor.image_processor(batch, return_tensors="pt")["pixel_values"]
        features = captioner.model.core.encode_images(pixels).pooler_output
        measured = _measure(captioner, [collator.prompt_ids(row)] * len(batch), features, generation, start)
        own = np.array([numbers for _, numbers in measured])
        signals.append(np.column_stack([own, pictures.log_distances(pooled(features))]))
    return Negatives(np.concatenate(signals), np.array([kind for kind, _ in drawn]))


__all__ = ["Calibration", "CalibrationReport", "CalibrationSettings", "calibrate"]

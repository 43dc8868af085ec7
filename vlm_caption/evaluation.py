"""How good a captioner is on a split: the loss on the references, with the right images and with wrong ones, and the
captions' BLEU and CIDEr.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from .captioner import Caption, Captioner
from .console import progress
from .data import PictureOpener, Vectors, open_place
from .data.collator import CaptionCollator
from .image_inputs import ImageInputs, with_index
from .images import ImageError
from .metrics import score
from .nll import caption_nll


@dataclass(frozen=True)
class Evaluation:
    """Scores of one captioner on one split.

    Attributes:
        loss: nats a token of the references, end tokens included.
        shuffled_loss: the same, every reference beside another row's image; a model that looks loses by it. None for
            a single row.
        captions: one a row, in order.
        metrics: `bleu_1` … `bleu_4` and `cider`, as fractions (papers print them × 100); empty where not computed.
        reason: why `metrics` is empty.
    """

    loss: float
    shuffled_loss: float | None
    captions: list[str]
    metrics: dict[str, float]
    reason: str | None


def evaluate(
    captioner: Captioner,
    dataset: Dataset,
    batch_size: int = 8,
    prompt: str = "",
    max_caption_tokens: int = 64,
    features_dir: Path | None = None,
    open_picture: PictureOpener | None = None,
    vectors: Vectors | None = None,
    **generate_kwargs,
) -> Evaluation:
    """Scores a captioner on the rows of `load_captions`.

    Args:
        captioner: the one to score.
        dataset: columns `image` and `captions`.
        batch_size: images at a time.
        prompt, max_caption_tokens: as in training.
        features_dir: where the images' features are kept.
        open_picture: by default within the limits of `open_image`.
        vectors: what the captions are of, where that is no pictures.
        **generate_kwargs: instead of the checkpoint's generation settings.

    Raises:
        ImageError: if a picture cannot be read.
        DataError: if a vector holds a number that is not finite.
        ValueError: if the captioner takes vectors and none are given, or others.
    """
    model, processor = captioner.model, captioner.processor
    open_picture = open_picture or PictureOpener()
    dataset = with_index(dataset)
    if (vectors is None) != (model.config.feature_size is None):
        takes = "pictures" if vectors is not None else "vectors"
        raise ValueError(
            f"This captioner takes {takes}: {'leave out' if vectors is not None else 'give'} data.features."
        )
    images = ImageInputs(
        model,
        processor,
        dataset["image"],
        cache=True,
        features_dir=features_dir,
        open_picture=open_picture,
        vectors=vectors,
    )
    collator = CaptionCollator(processor, images, prompt=prompt, max_caption_tokens=max_caption_tokens)
    loss = caption_nll(model, dataset, collator, batch_size)
    shuffled_loss = None
    if len(dataset) > 1:
        shuffled_loss = caption_nll(model, dataset, collator, batch_size, shuffle_images=True)
    settings: dict[str, Any] = {"prompt": prompt, "batch_size": batch_size, **generate_kwargs}
    results: Iterator[Caption | ImageError]
    if vectors is not None:
        results = captioner.caption_vectors(vectors.select(dataset["image"]), **settings)
    else:
        results = captioner.caption_each(
            (open_place(image, open_picture.max_bytes) for image in dataset["image"]),
            max_pixels=open_picture.max_pixels,
            max_bytes=open_picture.max_bytes,
            **settings,
        )
    texts = []
    for result in progress(results, total=len(dataset), desc="captions"):
        if isinstance(result, ImageError):
            raise result
        texts.append(result.text)
    scores = score(texts, dataset["captions"], ("bleu", "cider"))
    return Evaluation(loss, shuffled_loss, texts, scores.corpus, next(iter(scores.not_computed.values()), None))

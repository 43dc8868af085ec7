"""How good a captioner is on a split: the loss on the references, with the right images and with wrong ones, and the
captions' BLEU and CIDEr.
"""

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset

from .captioner import Captioner
from .console import progress
from .data import PictureOpener, open_place
from .data.collator import CaptionCollator
from .images import ImageError
from .training import ImageInputs, caption_nll, with_index


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
        **generate_kwargs: instead of the checkpoint's generation settings.

    Raises:
        ImageError: if a picture cannot be read.
    """
    model, processor = captioner.model, captioner.processor
    open_picture = open_picture or PictureOpener()
    dataset = with_index(dataset)
    images = ImageInputs(
        model, processor, dataset["image"], cache=True, features_dir=features_dir, open_picture=open_picture
    )
    collator = CaptionCollator(processor, images, prompt=prompt, max_caption_tokens=max_caption_tokens)
    loss = caption_nll(model, dataset, collator, batch_size)
    shuffled_loss = None
    if len(dataset) > 1:
        shuffled_loss = caption_nll(model, dataset, collator, batch_size, shuffle_images=True)
    results = captioner.caption_each(
        (open_place(image, open_picture.max_bytes) for image in dataset["image"]),
        prompt=prompt,
        batch_size=batch_size,
        max_pixels=open_picture.max_pixels,
        max_bytes=open_picture.max_bytes,
        **generate_kwargs,
    )
    texts = []
    for result in progress(results, total=len(dataset), desc="captions"):
        if isinstance(result, ImageError):
            raise result
        texts.append(result.text)
    metrics: dict[str, float] = {}
    reason = None
    try:
        metrics = score(texts, dataset["captions"])
    except ScorerMissingError as error:
        reason = str(error)
    return Evaluation(loss, shuffled_loss, texts, metrics, reason)


class ScorerMissingError(RuntimeError):
    """A metric cannot be computed here; the message says what it needs."""


def score(captions: Sequence[str], references: Sequence[Sequence[str]]) -> dict[str, float]:
    """BLEU-1..4 and CIDEr of pycocoevalcap, after its PTB tokenizer, as the COCO evaluation server computes them.

    Args:
        captions: one an image.
        references: the references of each image.

    Raises:
        ScorerMissingError: if pycocoevalcap, or the Java that its tokenizer runs on, is not there.
    """
    try:
        from pycocoevalcap.bleu.bleu import Bleu
        from pycocoevalcap.cider.cider import Cider
        from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer
    except ImportError as error:
        raise ScorerMissingError("BLEU and CIDEr need pycocoevalcap: pip install pycocoevalcap") from error
    if shutil.which("java") is None:
        raise ScorerMissingError("BLEU and CIDEr need java, which the PTB tokenizer runs on")

    def tokenize(texts: Mapping[int, Sequence[str]]) -> dict[int, list[str]]:
        return PTBTokenizer().tokenize(
            {image: [{"caption": text} for text in lines] for image, lines in texts.items()}
        )

    candidate_tokens = tokenize({image: [text] for image, text in enumerate(captions)})
    reference_tokens = tokenize(dict(enumerate(references)))
    bleu, _ = Bleu(4).compute_score(reference_tokens, candidate_tokens, verbose=0)
    cider, _ = Cider().compute_score(reference_tokens, candidate_tokens)
    return {f"bleu_{n}": float(value) for n, value in enumerate(bleu, start=1)} | {"cider": float(cider)}

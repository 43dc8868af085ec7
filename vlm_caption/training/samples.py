"""Captions of a few dev images, written at every evaluation for a person to read."""

from datasets import Dataset

from ..captioning.generation import caption_rows
from ..data.collator import CaptionCollator
from ..data.places import row_name
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.processor import VectorProcessor


class SampleCaptions:
    """Captions a few dev images.

    Args:
        dataset: Their rows, with `image`, `captions` and `index`.
        collator: The dev images' collator.

    Attributes:
        rows: The same rows, as a list.
        has_vectors: Whether the captions are of vectors instead of pictures.
    """

    def __init__(self, dataset: Dataset, collator: CaptionCollator):
        self.rows, self.collator = list(dataset), collator
        self.has_vectors = isinstance(collator.processor, VectorProcessor)

    def captions(self, model: CaptionerForConditionalGeneration) -> list[dict[str, str]]:
        """Returns the name, the caption and one reference of each image. Nothing is drawn at random."""
        texts = caption_rows(model, self.collator, self.rows, len(self.rows))
        return [
            {"image": row_name(row["image"], self.has_vectors), "caption": text, "reference": row["captions"][0]}
            for row, text in zip(self.rows, texts, strict=True)
        ]

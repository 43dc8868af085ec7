"""Which captions are right, as far as references can tell."""

from collections.abc import Hashable, Sequence

import numpy as np

from ..captioning.nll import rows_of_others
from ..metrics.cider_d import CiderD
from ..metrics.tokens import choose_tokenizer, tokenize_with


def shares_below(
    captions: Sequence[str], references: Sequence[Sequence[str]], images: Sequence[Hashable]
) -> tuple[np.ndarray, np.ndarray]:
    """Returns how well each caption tells its image from others.

    Args:
        captions: The caption of each row.
        references: The references of each row.
        images: The image of each row; several rows may have the same one.

    Returns:
        The CIDEr-D of each caption with its own references, a fraction, with the document frequencies of all
        references, float [N]; and the share of the other images' rows whose references give the same caption a lower
        CIDEr-D, float [N].

    Raises:
        ValueError: There is only one image.
    """
    rows_of_others(images)  # refuses a single image
    tokenizer = choose_tokenizer(text for texts in references for text in texts)
    flat = iter(tokenize_with(tokenizer, [text for texts in references for text in texts]))
    tokens = [[next(flat) for _ in texts] for texts in references]
    scores = CiderD(tokens).score_pairs(tokenize_with(tokenizer, captions), tokens)  # [N, N]
    numbers = {image: number for number, image in enumerate(dict.fromkeys(images))}
    image_of = np.array([numbers[image] for image in images])
    is_other = image_of[:, None] != image_of
    own = np.diag(scores)
    return own, ((scores < own[:, None]) & is_other).sum(axis=1) / is_other.sum(axis=1)

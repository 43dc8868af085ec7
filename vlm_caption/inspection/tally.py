"""What is known of each image and each caption of a split, and the numbers made of it."""

import hashlib
from array import array
from collections.abc import Sequence

import numpy as np

from .facts import Facts, Spread
from .result import Finding


class Tally:
    """What is known of each image and each caption of a split, a few bytes each.

    Attributes:
        per_image: How many captions each image has.
        words, tokens, hashes: Of each caption; without a tokenizer there are no tokens.
        digests: A hash of each image's bytes.
        sizes: Width and height of each image; 0 where it cannot be opened.
    """

    def __init__(self, images: int):
        self.per_image, self.words, self.tokens = array("L"), array("L"), array("L")
        self.hashes = array("Q")
        self.digests = np.zeros(images, np.uint64)
        self.sizes = np.zeros((images, 2), np.int64)


def count_facts(tallies: dict[str, Tally], lost: Sequence[list[Finding]], max_caption_tokens: int) -> Facts:
    """Returns the numbers of some splits.

    Args:
        tallies: What is known of each of these splits.
        lost: The missing images of all splits, and the unreadable ones.
        max_caption_tokens: Longer captions would be cut.
    """

    def join(name: str) -> np.ndarray:
        return np.concatenate([np.asarray(getattr(tally, name)) for tally in tallies.values()])

    missing, unreadable = (sum(finding.split in tallies for finding in findings) for findings in lost)
    words, tokens, per_image, sizes = join("words"), join("tokens"), join("per_image"), join("sizes")
    sizes = sizes[sizes[:, 0] > 0]
    counts, images = np.unique(per_image, return_counts=True)
    return Facts(
        images=len(per_image),
        missing=missing,
        unreadable=unreadable,
        captions=len(words),
        different_captions=len(np.unique(join("hashes"))),
        captions_per_image={int(count): int(number) for count, number in zip(counts, images, strict=True)},
        words=Spread.of(words),
        tokens=Spread.of(tokens),
        too_long=int((tokens > max_caption_tokens).sum()) if tokens.size else None,
        width=Spread.of(sizes[:, 0]),
        height=Spread.of(sizes[:, 1]),
    )


def hash_bytes(content: bytes) -> int:
    """Returns a hash of 64 bits."""
    # Among ten million, two that are different look the same once in 400,000 corpora.
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest())

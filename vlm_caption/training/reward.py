"""The reward of a sampled caption: CIDEr-D against its image's references, with the end of the caption as a word.

Without that word a caption that breaks off, such as "a man in a", is rewarded like a whole one, and training learns to
break off: scores rise by about 4 points, and captions get worse. See Hu et al. 2023, "A request for clarity over the
End of Sequence token in the Self-Critical Sequence Training" (arXiv:2305.12254), and their library SacreEOS.

CIDEr ignores punctuation. There are two such words, so that captions keep ending with a full stop, or without one, as
the references do.
"""

import itertools
from collections.abc import Sequence

import torch

from ..data.captions import FULL_STOPS
from ..metrics.cider_d import CiderD
from ..metrics.ngram_scores import score_bleu
from ..metrics.tokens import choose_tokenizer, tokenize_with

# The words for the end of a caption, with a full stop before it and without one. Tokens are in lowercase and without
# punctuation, so no word of a caption is one of these.
END, BARE_END = "END.", "END"


class CaptionReward:
    """Rewards the captions of a corpus's images.

    Document frequencies are those of the whole corpus.

    Args:
        references: The references of each image of the corpus, at least one for each.
        bleu: The weight of BLEU-4, which is added to CIDEr-D.
    """

    def __init__(self, references: Sequence[Sequence[str]], bleu: float = 0.0):
        texts = list(itertools.chain.from_iterable(references))
        self.bleu, self.tokenizer = bleu, choose_tokenizer(texts)
        tokens = iter(tokenize_with(self.tokenizer, texts))
        self.references = [[_end(next(tokens), caption) for caption in captions] for captions in references]
        self.cider = CiderD(self.references)

    def __call__(self, images: Sequence[int], captions: Sequence[str], ended: Sequence[bool]) -> torch.Tensor:
        """Returns the reward of each caption, float32 [images, captions of an image], on the CPU.

        Args:
            images: The index of each image in the corpus.
            captions: The captions of the first image, then those of the second, and so on; as many for each.
            ended: Whether each caption came to its end and was not cut at the maximum length.
        """
        tokens = [
            _end(text, caption) if is_whole else text
            for text, caption, is_whole in zip(tokenize_with(self.tokenizer, captions), captions, ended, strict=True)
        ]
        count = len(captions) // len(images)
        of_images = [tokens[start : start + count] for start in range(0, len(tokens), count)]
        rewards = torch.tensor(
            [self.cider.score(texts, self.references[image]) for image, texts in zip(images, of_images, strict=True)]
        )
        if self.bleu:
            references = [self.references[image] for image in images for _ in range(count)]
            rewards += self.bleu * torch.from_numpy(score_bleu(tokens, references)[1][:, -1]).view_as(rewards)
        return rewards


def advantages(rewards: torch.Tensor) -> torch.Tensor:
    """Returns by how much each reward exceeds the mean of the others of its image, float [I, K].

    The others' mean is a baseline that does not depend on the caption itself, so the gradient keeps its expectation
    (Kool et al. 2019, "Buy 4 REINFORCE Samples, Get a Baseline for Free!"; Luo 2020, "A Better Variant of
    Self-Critical Sequence Training", arXiv:2003.09971). Equal rewards give exactly 0.

    Args:
        rewards: float [I, K], of K captions of each of I images; K is at least 2.
    """
    return (rewards[:, :, None] - rewards[:, None, :]).sum(dim=2) / (rewards.shape[1] - 1)


def _end(tokens: str, caption: str) -> str:
    return f"{tokens} {END if caption.endswith(tuple(FULL_STOPS)) else BARE_END}"

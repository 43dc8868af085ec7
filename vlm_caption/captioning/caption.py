"""What a captioner returns. Needs neither torch nor transformers, for `vlm_caption.runtime` returns the same."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Caption:
    """One caption of a picture.

    Attributes:
        image: The picture's path, or a description of a picture without one; for vectors, the row's name.
        text: The caption in one line, without the prompt before it.
        score: The mean log-probability, in nats and at most 0, that the model gives the caption's tokens, the end
            token included if there is one. It depends only on the model, the picture, the prompt and the tokens: not
            on the number of beams, on sampling or on the rest of the batch.
        finished: Whether the caption came to its end. False if it was cut at the maximum length.
        checkpoint: An identifier of the weights; see `Captioner.checkpoint`. Only jobs of `scripts/caption.py` fill it
            in, because identifying the weights may take as long as reading them.
        prompt: Which of several prompts or questions the caption is for; empty if there is one for all pictures.
        confidence: The probability that the caption is right, from 0 to 1; see [`Confidence`]. None if the checkpoint
            has no `confidence.json`. Like the score, it depends only on the model, the picture, the prompt and the
            tokens. An exported captioner has none.
    """

    image: str
    text: str
    score: float
    finished: bool = True
    checkpoint: str = ""
    prompt: str = ""
    confidence: float | None = None


def first_place(starts: Sequence[str], is_reached: Callable[[str], bool]) -> int:
    """Returns the index of the first token at which a text meets a condition, or the number of tokens if none does.

    Args:
        starts: The text up to and including each token.
        is_reached: The condition.
    """
    return next((place for place, start in enumerate(starts) if is_reached(start)), len(starts))


def cut(text: str, stop: Sequence[str], max_words: int | None) -> tuple[str, bool] | None:
    """Returns a caption cut by `stop` and `max_words`, and whether it is finished there; None if it is not cut.

    Args:
        text: The caption.
        stop: Texts that end it, and are not part of it.
        max_words: The maximum number of words.
    """
    stops = [place for mark in stop if (place := text.find(mark)) >= 0]
    before = text[: min(stops)] if stops else text
    words = before.split()
    if max_words is not None and len(words) > max_words:
        return " ".join(words[:max_words]), False
    return (before, True) if stops else None

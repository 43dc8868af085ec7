"""What a captioner returns. Needs neither torch nor transformers, for `vlm_caption.runtime` returns the same."""

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .consensus import DocumentFrequencies
    from .datastore import Datastore


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
            tokens.
    """

    image: str
    text: str
    score: float
    finished: bool = True
    checkpoint: str = ""
    prompt: str = ""
    confidence: float | None = None


@dataclass(frozen=True, kw_only=True)
class TextSettings:
    """How captions are written, in what depends on no model: whichever captioner writes them has these settings.

    Attributes:
        stop: Texts that end a caption. They are not part of it.
        ban: Words that are never written, as the tokenizer spells them inside a caption and at its beginning.
        max_words: The maximum number of words in a caption. The rest is cut off.
        seed: Makes sampling reproducible.
        consensus: Write this many captions, by beam search or sampling, and keep the one that agrees most with the
            others, or as many as `num_return_sequences` says; see [`DocumentFrequencies`].
        document_frequencies: What a consensus takes for frequent words, by default what is in the datastore or beside
            the checkpoint.
        datastore: Keep the caption that agrees most with those of the most similar pictures of a datastore. A
            consensus then has 8 captions unless it is set.
    """

    stop: tuple[str, ...] = ()
    ban: tuple[str, ...] = ()
    max_words: int | None = None
    seed: int | None = None
    consensus: int | None = None
    document_frequencies: "DocumentFrequencies | None" = None
    datastore: "Datastore | None" = None


def complete_arguments(given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns arguments of `Captioner.caption_each` in the form of [`TextSettings`].

    Args:
        given: The arguments. `stop` and `ban` are a text or several, and `datastore` may be its folder.

    Raises:
        DataError: The folder has no datastore.
    """
    complete = dict(given)
    for name in ("stop", "ban"):
        if name in complete:
            value = complete[name]
            complete[name] = (value,) if isinstance(value, str) else tuple(value)
    if "datastore" in complete:
        from .datastore import CANDIDATES, Datastore, open_datastore  # with the metrics, which few need here

        store = complete["datastore"]
        if not isinstance(store, Datastore):
            store = complete["datastore"] = open_datastore(os.fspath(store))
        complete.setdefault("consensus", max(CANDIDATES, complete.get("num_return_sequences", 1)))
        complete.setdefault("document_frequencies", store.frequencies)
    return complete


_AT_LEAST_1 = ("num_beams", "max_new_tokens", "num_return_sequences", "max_words", "consensus")


def check_settings(value_of: Callable[[str], int | None], texts: Sequence[str]) -> None:
    """Checks settings of generation that do not depend on what generates.

    Args:
        value_of: Returns the number that a setting of this name has; None if it is not set.
        texts: The texts of `stop` and `ban`.

    Raises:
        ValueError: A setting is out of range.
    """
    for name in _AT_LEAST_1:
        value = value_of(name)
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    written, kept = value_of("consensus"), value_of("num_return_sequences") or 1
    if written is not None and written < kept:
        raise ValueError(f"consensus {written} writes too few captions to keep {kept} of them: raise it.")
    if not all(text.strip() for text in texts):
        raise ValueError("stop and ban take texts with at least one visible character.")


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

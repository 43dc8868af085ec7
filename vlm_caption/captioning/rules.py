"""How captions are written, and the rules that change the logits on the way: transformers' own, over NumPy."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Self

import numpy as np

from .caption import TextSettings, check_settings, complete_arguments

_ABOVE_0 = ("temperature", "repetition_penalty")

# Settings of `generate` that change no token.
_WITHOUT_EFFECT = {
    "_from_model_config",
    "bos_token_id",
    "cache_implementation",
    "output_attentions",
    "output_hidden_states",
    "return_dict_in_generate",
    "transformers_version",
    "use_cache",
}


@dataclass(frozen=True)
class DecodingSettings(TextSettings):
    """How captions are written. The names are those of transformers' `generate` and of `Captioner.caption_each`.

    Attributes:
        eos_token_id: The end tokens.
        pad_token_id: The padding token, which counts for no score, should a model write it before the end.
        num_beams: Of beam search; 1 is greedy.
        max_new_tokens, min_new_tokens: The length of a caption in tokens, its end token included.
        num_return_sequences: Captions of each picture.
        length_penalty: Of beams: above 0 for longer captions.
        early_stopping: True ends a beam search with `num_beams` captions, False when no better ones are likely, and
            "never" when there can be none.
        do_sample: Whether tokens are drawn at random.
        temperature, top_k, top_p: Of sampling; a `top_k` of 0 is no limit.
        no_repeat_ngram_size: No run of that many tokens comes twice; 0 is no limit.
        repetition_penalty: Above 1, tokens seldom come twice.
        bad_words_ids: Token sequences that are never written.
        suppress_tokens: Tokens that are never written.

    Raises:
        ValueError: A setting is out of range, or goes with no other.
    """

    eos_token_id: Sequence[int] = ()
    pad_token_id: int | None = None
    num_beams: int = 1
    max_new_tokens: int = 40
    min_new_tokens: int = 0
    num_return_sequences: int = 1
    length_penalty: float = 1.0
    early_stopping: bool | str = False
    do_sample: bool = False
    temperature: float = 1.0
    top_k: int = 50
    top_p: float = 1.0
    no_repeat_ngram_size: int = 0
    repetition_penalty: float = 1.0
    bad_words_ids: Sequence[Sequence[int]] = ()
    suppress_tokens: Sequence[int] = ()

    def __post_init__(self) -> None:
        check_settings(lambda name: getattr(self, name), (*self.stop, *self.ban))
        for name in _ABOVE_0:
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be above 0, got {getattr(self, name)}.")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}.")
        if self.do_sample and self.num_beams > 1:
            raise ValueError("An exported captioner samples without beams: set num_beams to 1.")

    @property
    def num_written(self) -> int:
        """The number of captions that are written of each picture; a consensus keeps only some of them."""
        return self.consensus or self.num_return_sequences

    @property
    def needs_all_logits(self) -> bool:
        """Whether choosing a token takes the logits of all tokens, and not only the greatest ones."""
        return self.do_sample or self.repetition_penalty != 1

    def updated(self, arguments: Mapping[str, Any]) -> Self:
        """Returns these settings with others in their place.

        Args:
            arguments: Arguments of `Captioner.caption_each`. Those that are None count as not given.

        Raises:
            DataError: The folder of `datastore` has none.
            ValueError: There is no such setting, or one is out of range.
        """
        given = {name: value for name, value in arguments.items() if value is not None}
        known = {field.name for field in fields(self)}
        if unknown := sorted(given.keys() - known):
            raise ValueError(f"An exported captioner has no setting {unknown[0]}: it has {', '.join(sorted(known))}.")
        given = complete_arguments(given)
        if isinstance(given.get("eos_token_id"), int):
            given["eos_token_id"] = [given["eos_token_id"]]
        count = given.get("consensus") or given.get("num_return_sequences", 1)
        beams = given.get("num_beams", self.num_beams)
        if count > max(beams, 1) and not given.get("do_sample", self.do_sample):
            if "num_beams" in given:
                raise ValueError(f"{count} captions of an image need at least {count} beams, or sampling.")
            given["num_beams"] = count
        return replace(self, **given)


def split_settings(given: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Returns those settings of transformers' `generate` that [`DecodingSettings`] has, and the names of others.

    Args:
        given: The settings. Those that are None count as not given, and those that change no token are left out.
    """
    relevant = {name: value for name, value in given.items() if value is not None and name not in _WITHOUT_EFFECT}
    ends = relevant.pop("eos_token_id", [])
    names = {field.name for field in fields(DecodingSettings)}
    known = {name: value for name, value in relevant.items() if name in names}
    known["eos_token_id"] = ends if isinstance(ends, list) else [ends]
    return known, sorted(relevant.keys() - names)


def change_logits(scores: np.ndarray, written: Sequence[Sequence[int]], settings: DecodingSettings) -> np.ndarray:
    """Returns scores after the rules against repetition, banned words and early ends, in transformers' order.

    Args:
        scores: Logits or log-probabilities of the next token, float [R, V].
        written: The tokens so far of each row, without the prompt; all of the same number.
        settings: The rules.
    """
    scores = scores.copy()
    for row, tokens in enumerate(written):
        if settings.repetition_penalty != 1 and tokens:
            seen = np.unique(np.asarray(tokens))
            old, penalty = scores[row, seen], np.float32(settings.repetition_penalty)
            scores[row, seen] = np.where(old < 0, old * penalty, old / penalty)
        scores[row, list(banned_tokens(tokens, settings))] = -np.inf
    return scores


def banned_tokens(tokens: Sequence[int], settings: DecodingSettings) -> set[int]:
    """Returns the tokens that must not come next.

    Args:
        tokens: Those so far, without the prompt.
        settings: The rules.
    """
    banned = set(settings.suppress_tokens)
    if settings.no_repeat_ngram_size:
        banned.update(_repeating(tokens, settings.no_repeat_ngram_size))
    for *before, last in settings.bad_words_ids:
        is_end = not before and last in settings.eos_token_id
        if list(tokens[len(tokens) - len(before) :]) == before and not is_end:
            banned.add(last)
    if len(tokens) < settings.min_new_tokens:
        banned.update(settings.eos_token_id)
    return banned


def _repeating(tokens: Sequence[int], size: int) -> Iterable[int]:
    """Yields the tokens that would complete a run of that many tokens a second time."""
    if len(tokens) + 1 >= size:
        last = list(tokens[len(tokens) - size + 1 :])
        for start in range(len(tokens) - size + 1):
            if list(tokens[start : start + size - 1]) == last:
                yield tokens[start + size - 1]


def keep_likely(scores: np.ndarray, settings: DecodingSettings) -> np.ndarray:
    """Returns scores float [R, V] after temperature, top-k and top-p, with minus infinity for what is left out.

    Top-p is the nucleus sampling of Holtzman et al. 2019, "The Curious Case of Neural Text Degeneration".
    """
    scores = scores / np.float32(settings.temperature)
    if 0 < settings.top_k < scores.shape[1]:
        lowest = np.partition(scores, -settings.top_k, axis=1)[:, -settings.top_k, None]
        scores = np.where(scores < lowest, -np.inf, scores)
    if settings.top_p < 1:
        order = scores.argsort(axis=1, kind="stable")
        ascending = np.take_along_axis(scores, order, axis=1)
        is_left_out = softmax(ascending).cumsum(axis=1) <= 1 - settings.top_p
        is_left_out[:, -1] = False
        scores = np.where(np.take_along_axis(is_left_out, order.argsort(axis=1), axis=1), -np.inf, scores)
    return scores


def softmax(scores: np.ndarray) -> np.ndarray:
    """Returns the probabilities of scores float [R, V]."""
    powers = np.exp(scores - scores.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)

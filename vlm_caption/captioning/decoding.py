"""Writes token sequences with a language model: greedily, by beam search or by sampling.

The sequences are those of transformers' `generate`, token for token. Each prompt is read once, however many sequences
continue it, and rows that have ended leave the batch, which changes nothing for the others. Needs no torch: whoever
has the language model gives its [`Rows`].
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np

from .rules import DecodingSettings, banned_tokens, change_logits, keep_likely, softmax

_LOWEST = np.float32(-1e9)  # what transformers' beam search gives to what cannot be chosen


@dataclass(frozen=True)
class Logits:
    """What the language model says of the next token.

    Attributes:
        log_sum: The logarithm of the sum of the exponentials of all logits, float [R, 1].
        top, top_ids: The greatest logits in descending order, float [R, K], and their tokens, int64 [R, K].
        full: All logits, float [R, V]; None if they were not asked for.
    """

    log_sum: np.ndarray
    top: np.ndarray
    top_ids: np.ndarray
    full: np.ndarray | None


class Rows(Protocol):
    """Token sequences that are being written, and the language model that continues them."""

    def read_prompts(self, top: int, full: bool) -> Logits:
        """Reads the prompts, and returns the logits of each one's first new token.

        Args:
            top: K; where the vocabulary is smaller, its size.
            full: Whether all logits are needed.
        """
        ...

    def advance(self, tokens: np.ndarray, rows: np.ndarray, top: int, full: bool) -> Logits:
        """Adds a token to each of some rows, which then are the rows, and returns their next logits.

        Args:
            tokens: int64 [R].
            rows: int64 [R], those of the last step.
            top: K; where the vocabulary is smaller, its size.
            full: Whether all logits are needed.
        """
        ...


@dataclass
class Written:
    """A sequence of new tokens.

    Attributes:
        ids: The tokens, an end token included if there is one.
        log_probs: The log-probability that the model gives each token, whatever the rules say.
    """

    ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)

    def plus(self, token: int, log_prob: float) -> "Written":
        """Returns the sequence with one more token."""
        return Written([*self.ids, token], [*self.log_probs, log_prob])


class _Candidates(NamedTuple):
    """The best next tokens of each row in descending order, [R, K] each."""

    ids: np.ndarray
    scores: np.ndarray
    log_probs: np.ndarray


def write(rows: Rows, count: int, settings: DecodingSettings, rng: np.random.Generator) -> list[list[Written]]:
    """Writes `num_written` sequences for each prompt.

    Args:
        rows: The prompts.
        count: Their number.
        settings: How they are continued.
        rng: The source of randomness of sampling.
    """
    if settings.num_beams > 1:
        return _search(rows, count, settings)
    return _write_rows(rows, count, settings, rng)


def _write_rows(rows: Rows, count: int, settings: DecodingSettings, rng: np.random.Generator) -> list[list[Written]]:
    """Writes greedily, or by sampling."""
    repeats, full = settings.num_written, settings.needs_all_logits
    written = [Written() for _ in range(count * repeats)]
    active = np.arange(len(written))  # the sequence of each row
    banned = _ban([[]] * len(written), settings)
    logits = _repeat(rows.read_prompts(_enough(1, banned), full), repeats)
    source = np.repeat(np.arange(count), repeats)  # the rows of the cache, which has one for each prompt yet
    for step in range(settings.max_new_tokens):
        sequences = [written[index].ids for index in active]
        tokens, log_probs = _next_tokens(logits, sequences, banned, settings, rng)
        for index, token, log_prob in zip(active, tokens.tolist(), log_probs.tolist(), strict=True):
            written[index] = written[index].plus(token, log_prob)
        going = np.flatnonzero(~np.isin(tokens, settings.eos_token_id))
        if not len(going) or step + 1 == settings.max_new_tokens:
            break
        active = active[going]
        banned = _ban([written[index].ids for index in active], settings)
        logits = rows.advance(tokens[going], source[going], _enough(1, banned), full)
        source = np.arange(len(going))
    return [written[start : start + repeats] for start in range(0, len(written), repeats)]


def _ban(sequences: Sequence[list[int]], settings: DecodingSettings) -> list[list[int]]:
    """Returns the tokens that must not come next, for each row."""
    return [list(banned_tokens(tokens, settings)) for tokens in sequences]


def _enough(wanted: int, banned: list[list[int]]) -> int:
    """Returns how many of the greatest logits hold as many that are not banned."""
    return wanted + max(map(len, banned))


def _repeat(logits: Logits, repeats: int) -> Logits:
    parts = (logits.log_sum, logits.top, logits.top_ids, logits.full)
    return Logits(*(None if part is None else part.repeat(repeats, axis=0) for part in parts))  # ty: ignore


def _next_tokens(
    logits: Logits,
    sequences: list[list[int]],
    banned: list[list[int]],
    settings: DecodingSettings,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the next token of each row, int64 [R], and its log-probability, float [R]."""
    if logits.full is None:
        best = _best_of_top(logits, banned, 1)
        return best.ids[:, 0], best.log_probs[:, 0]
    scores = change_logits(logits.full, sequences, settings)
    if settings.do_sample:
        shares = softmax(keep_likely(scores, settings)).cumsum(axis=1)
        draws = rng.random((len(scores), 1)) * shares[:, -1:]
        tokens = (shares > draws).argmax(axis=1)
    else:
        tokens = scores.argmax(axis=1)
    return tokens, logits.full[np.arange(len(tokens)), tokens] - logits.log_sum[:, 0]


@dataclass
class _Beams:
    """The beam search of one prompt.

    Attributes:
        running: The beams, from the best to the worst.
        scores: Their log-probabilities, float32 [K].
        finished: The best finished sequences so far, at most K, with their scores after the length penalty.
        is_open: Whether better ones may still come.
    """

    running: list[Written]
    scores: np.ndarray
    finished: list[tuple[np.float32, Written]] = field(default_factory=list)
    is_open: bool = True


def _search(rows: Rows, count: int, settings: DecodingSettings) -> list[list[Written]]:
    """Searches with beams as transformers' `_beam_search` does, except that each prompt ends by itself.

    Once no better sequences can come for a prompt, transformers goes on with its beams and drops what they write.
    """
    width, full = settings.num_beams, settings.needs_all_logits
    keep = max(2, 1 + len(settings.eos_token_id)) * width
    searches = [_Beams([Written()], np.zeros(1, np.float32)) for _ in range(count)]
    active = list(range(count))
    banned = _ban([[]] * count, settings)
    logits = rows.read_prompts(_enough(keep, banned), full)
    first = np.arange(count)  # the first row of each search that goes on
    sequences: list[list[int]] = [[]] * count
    for length in range(1, settings.max_new_tokens + 1):
        candidates = _best_tokens(logits, sequences, banned, settings, keep)
        sources: list[int] = []
        going: list[int] = []
        for index, start in zip(active, first.tolist(), strict=True):
            search = searches[index]
            own = [part[start : start + len(search.running)] for part in candidates]
            parents = _extend(search, _Candidates(*own), keep, length, settings)
            if search.is_open and length < settings.max_new_tokens:
                going.append(index)
                sources += [start + parent for parent in parents]
        active = going
        if not active:
            break
        first = np.cumsum([0, *(len(searches[index].running) for index in active[:-1])])
        sequences = [beam.ids for index in active for beam in searches[index].running]
        banned = _ban(sequences, settings)
        tokens = np.array([ids[-1] for ids in sequences])
        logits = rows.advance(tokens, np.array(sources), _enough(keep, banned), full)
    return [[found for _, found in search.finished[: settings.num_written]] for search in searches]


def _best_tokens(
    logits: Logits, sequences: list[list[int]], banned: list[list[int]], settings: DecodingSettings, keep: int
) -> _Candidates:
    """Returns the best `keep` next tokens of each row."""
    if logits.full is None:
        return _best_of_top(logits, banned, keep)
    log_probs = logits.full - logits.log_sum
    scores = change_logits(log_probs, sequences, settings)
    ids = np.argpartition(-scores, min(keep, scores.shape[1] - 1), axis=1)[:, :keep]
    best = np.take_along_axis(scores, ids, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    return _Candidates(ids, np.take_along_axis(scores, ids, axis=1), np.take_along_axis(log_probs, ids, axis=1))


def _best_of_top(logits: Logits, banned: list[list[int]], keep: int) -> _Candidates:
    """Returns the best `keep` tokens of each row among those with the greatest logits."""
    log_probs = logits.top - logits.log_sum
    is_banned = np.array([np.isin(ids, tokens) for ids, tokens in zip(logits.top_ids, banned, strict=True)])
    scores = np.where(is_banned, -np.inf, log_probs)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :keep]
    return _Candidates(*(np.take_along_axis(part, order, axis=1) for part in (logits.top_ids, scores, log_probs)))


def _extend(search: _Beams, candidates: _Candidates, keep: int, length: int, settings: DecodingSettings) -> list[int]:
    """Adds a token to the beams of a search, and returns the old beam that each new one continues.

    Args:
        search: The search, which is changed.
        candidates: The best next tokens of each of its beams.
        keep: The number of continuations to look at.
        length: The number of tokens with the new one.
        settings: Of the search.
    """
    width = settings.num_beams
    totals = (search.scores[:, None] + candidates.scores).ravel()
    chosen = np.argsort(-totals, kind="stable")[:keep]
    per_beam = candidates.ids.shape[1]
    running: list[Written] = []
    scores: list[np.float32] = []
    parents: list[int] = []
    for place, flat in enumerate(chosen.tolist()):
        parent, column = divmod(flat, per_beam)
        token = int(candidates.ids[parent, column])
        beam = search.running[parent].plus(token, float(candidates.log_probs[parent, column]))
        ends = token in settings.eos_token_id or length == settings.max_new_tokens
        if not ends and len(running) < width:
            running.append(beam)
            scores.append(totals[flat])
            parents.append(parent)
        # Of what ends, only the best `width` continuations count; the rest keeps the beams going.
        if ends and place < width and search.is_open and totals[flat] > _LOWEST:
            penalised = totals[flat] / np.float32(length**settings.length_penalty)
            search.finished.append((penalised, beam))
    search.finished = sorted(search.finished, key=lambda found: -found[0])[:width]
    search.running, search.scores = running, np.array(scores, np.float32)
    _close(search, length, settings)
    return parents


def _close(search: _Beams, length: int, settings: DecodingSettings) -> None:
    """Closes a search if its finished sequences are as good as they get."""
    is_full = len(search.finished) == settings.num_beams
    if is_full and settings.early_stopping is True:
        search.is_open = False
    if not len(search.scores):
        search.is_open = False
        return
    best_length = length
    if settings.early_stopping == "never" and settings.length_penalty > 0:
        best_length = settings.max_new_tokens
    best = search.scores[0] / np.float32(best_length**settings.length_penalty)
    worst = search.finished[-1][0] if is_full else _LOWEST
    if not best > worst:
        search.is_open = False

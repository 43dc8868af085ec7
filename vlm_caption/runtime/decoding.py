"""Writes token sequences with a language model: greedily, by beam search or by sampling.

The sequences are those of transformers' `generate`, token for token. Rows that have ended leave the batch, which
changes nothing for the others.
"""

from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from .graphs import Logits, Rows
from .rules import DecodingSettings, change_logits, keep_likely, softmax

_LOWEST = np.float32(-1e9)  # what transformers' beam search gives to what cannot be chosen


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
    """Writes `num_return_sequences` sequences for each prompt.

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
    repeats = settings.num_return_sequences
    written = [Written() for _ in range(count * repeats)]
    active = np.arange(len(written))  # the sequence of each row
    full = settings.changes_logits
    logits = _repeat(rows.read_prompts(1, full), repeats)
    source = np.repeat(np.arange(count), repeats)  # the rows of the cache, which has one for each prompt yet
    for step in range(settings.max_new_tokens):
        sequences = [written[index].ids for index in active]
        tokens, log_probs = _next_tokens(logits, sequences, settings, rng)
        for index, token, log_prob in zip(active, tokens.tolist(), log_probs.tolist(), strict=True):
            written[index] = written[index].plus(token, log_prob)
        going = np.flatnonzero(~np.isin(tokens, settings.eos_token_id))
        if not len(going) or step + 1 == settings.max_new_tokens:
            break
        active = active[going]
        logits = rows.advance(tokens[going], source[going], 1, full)
        source = np.arange(len(going))
    return [written[start : start + repeats] for start in range(0, len(written), repeats)]


def _repeat(logits: Logits, repeats: int) -> Logits:
    parts = (logits.log_sum, logits.top, logits.top_ids, logits.full)
    return Logits(*(None if part is None else part.repeat(repeats, axis=0) for part in parts))  # ty: ignore


def _next_tokens(
    logits: Logits, sequences: list[list[int]], settings: DecodingSettings, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the next token of each row, int64 [R], and its log-probability, float [R]."""
    if logits.full is None:
        return logits.top_ids[:, 0], logits.top[:, 0] - logits.log_sum[:, 0]
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
    width = settings.num_beams
    keep = max(2, 1 + len(settings.eos_token_id)) * width
    full = settings.changes_logits
    searches = [_Beams([Written()], np.zeros(1, np.float32)) for _ in range(count)]
    active = list(range(count))
    logits = rows.read_prompts(keep, full)
    first = np.arange(count)  # the first row of each search that goes on
    for length in range(1, settings.max_new_tokens + 1):
        sequences = [beam.ids for index in active for beam in searches[index].running]
        candidates = _best_tokens(logits, sequences, settings, keep)
        tokens: list[int] = []
        sources: list[int] = []
        going: list[int] = []
        for index, start in zip(active, first.tolist(), strict=True):
            search = searches[index]
            own = [part[start : start + len(search.running)] for part in candidates]
            parents = _extend(search, _Candidates(*own), keep, length, settings)
            if search.is_open and length < settings.max_new_tokens:
                going.append(index)
                tokens += [beam.ids[-1] for beam in search.running]
                sources += [start + parent for parent in parents]
        active = going
        if not active:
            break
        first = np.cumsum([0, *(len(searches[index].running) for index in active[:-1])])
        logits = rows.advance(np.array(tokens), np.array(sources), keep, full)
    return [[found for _, found in search.finished[: settings.num_return_sequences]] for search in searches]


def _best_tokens(logits: Logits, sequences: list[list[int]], settings: DecodingSettings, keep: int) -> _Candidates:
    """Returns the best `keep` next tokens of each row."""
    if logits.full is None:
        log_probs = logits.top - logits.log_sum
        return _Candidates(logits.top_ids, log_probs, log_probs)
    log_probs = logits.full - logits.log_sum
    scores = change_logits(log_probs, sequences, settings)
    ids = np.argpartition(-scores, min(keep, scores.shape[1] - 1), axis=1)[:, :keep]
    best = np.take_along_axis(scores, ids, axis=1)
    order = np.argsort(-best, axis=1, kind="stable")
    ids = np.take_along_axis(ids, order, axis=1)
    return _Candidates(ids, np.take_along_axis(scores, ids, axis=1), np.take_along_axis(log_probs, ids, axis=1))


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

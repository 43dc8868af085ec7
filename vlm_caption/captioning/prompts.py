"""The prompts of each input: one, or several with their questions. Needs neither torch nor transformers."""

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

from ..core.prompts import QUESTION

# The text for the prompt's `{question}`: one for all pictures; or for each picture one text, or several.
Question = str | Sequence[str | Sequence[str]] | None

NOT_AS_MANY = "There are not as many questions as inputs: give one for all, or one for each."


@dataclass(frozen=True)
class Prompt:
    """The token ids of a prompt, and its name as in `Caption.prompt`."""

    input_ids: list[int]
    name: str


def encode_prompts(
    prompt: str | Sequence[str],
    question: Question,
    default: str,
    encode: Callable[[list[str | None], str], Iterable[list[int]]],
) -> Iterable[list[Prompt]]:
    """Returns the prompts of each input: a list for each entry of `question`, or the same list without end.

    Args:
        prompt: One prompt or several; an empty one is the default.
        question: See `Question`.
        default: The default prompt.
        encode: Returns the token ids of a prompt with each of some questions.

    Raises:
        ValueError: There is no prompt, or an input without a question; or `encode` refuses them.
    """
    one_for_all = question is None or isinstance(question, str)
    entries = cast(Sequence[Any], [question] if one_for_all else question)
    asked: list[list[str | None]] = [list(e) if isinstance(e, (list, tuple)) else [e] for e in entries]
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    if not texts or not all(asked):
        raise ValueError("Give at least one prompt, and at least one question for each input.")
    prompts: list[list[Prompt]] = [[] for _ in asked]
    for text in texts:
        is_asking = len(texts) == 1 or QUESTION in (text or default)
        parts: list[list[str | None]] = asked if is_asking else [[None] for _ in asked]
        left = iter(encode([words for part in parts for words in part], text))
        for part, own in zip(parts, prompts, strict=True):
            for words in part:
                name = "" if one_for_all else words or ""
                own.append(Prompt(next(left), text.replace(QUESTION, words or "") if texts[1:] else name))
    return itertools.repeat(prompts[0]) if one_for_all else prompts

"""Conversations about pictures, as LLaVA and the chat models' trainers write them, in JSON or JSON lines."""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from ...core.files import is_folder
from ...core.text import first_line, preview
from ...core.untrusted import iterate_json
from ..records import ImageFolder, Problem, Record, Source, as_captions, first_of, join_turns, list_subfolders, the_one
from .json_corpora import find_json
from .table import is_conversation, read_jsonl

logger = logging.getLogger(__name__)

_ROLES = {"human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt"}


@dataclass(frozen=True, slots=True)
class Turn:
    """One turn of a conversation.

    Attributes:
        role: "human" or "gpt".
        text: What is said; None if that is not text.
        shows_image: Whether the picture is shown in this turn.
    """

    role: str
    text: str | None
    shows_image: bool


def find_llava(path: Path) -> list[Path]:
    """Returns the conversations: the file, or the JSON files of that kind in a folder."""
    if is_folder(path):
        lines = [file for file in sorted(path.glob("*.jsonl")) if is_conversation(first_line(file))]
        return find_json(path, "*.json", "llava") + lines
    if path.suffix.lower() == ".jsonl":
        return [path] if is_conversation(first_line(path)) else []
    return find_json(path, "*.json", "llava")


def read_llava(source: Source) -> Iterator[Record | Problem]:
    """Yields the captioning turns of conversations.

    A turn counts where a question of `human` mentions `<image>` and `gpt` answers it next: the answer is a caption. A
    question without `<image>`, later in the conversation, does not count, and conversations without a picture are
    passed over. So LLaVA-Pretrain is read whole, and the first answer of dialogues about pictures. Where questions are
    read, every question counts with its answer, and what was said before stands before the question, a line for each
    turn: LLaVA learns each answer of a dialogue behind the turns before it (Liu et al. 2023).

    The roles may be `user` and `assistant`, and the list `messages`; then the first question counts where none
    mentions `<image>`.

    Raises:
        DataError: The file is not JSON, is not of this kind, or has no pictures.
    """
    file = the_one(find_llava(source.path), source.path, "JSON file of conversations")
    folder = ImageFolder(source, [file.parent, *list_subfolders(file.parent)])
    passed_over = 0
    for where, sample in _samples(file):
        if isinstance(sample, Problem):
            yield sample
            continue
        name, turns = _find_image(sample), _find_turns(sample)
        pairs = _pair(turns, sample, source.questions)
        if name is None:
            passed_over += 1
        elif not isinstance(name, str) or not name:
            yield Problem(where, f"its image must be one path, and is {preview(name)}")
        elif not turns:
            yield Problem(where, "its conversations must be a list of turns")
        elif captions := as_captions([answer for _, answer in pairs]):
            questions = [asked for asked, _ in pairs] if source.questions else []
            yield folder.record(name, captions, where, questions=questions)
        elif source.questions:
            yield Problem(where, "gpt must answer, in text, a question of human")
        else:
            yield Problem(where, "gpt must answer, in text, a question of human that mentions <image>")
    if passed_over:
        logger.info("%s: passed over %d conversations without a picture", file, passed_over)
    folder.check()


def _samples(file: Path) -> Iterator[tuple[str, dict[str, Any] | Problem]]:
    """Yields each conversation and where it is."""
    if file.suffix.lower() == ".jsonl":
        for row in read_jsonl(file):
            yield row.where, row if isinstance(row, Problem) else dict(row.values)
        return
    number = 0
    for name, sample in iterate_json(file):
        if name is not None:
            continue
        number += 1
        where = f"{file}, conversation {number}"
        is_object = isinstance(sample, dict)
        yield where, sample if is_object else Problem(where, f"it must be an object, and is {preview(sample)}")


def _find_image(sample: dict[str, Any]) -> object:
    """Returns the path of the picture; None if the conversation has none, and something else if it has several."""
    image = first_of(sample, ("image", "images"))
    if image is None:
        parts = [part for turn in _raw_turns(sample) for part in _parts(turn) if "image" in str(part.get("type"))]
        image = [path for part in parts if (path := part.get("image") or part.get("path")) is not None] or None
    if isinstance(image, list):
        image = image[0] if len(image) == 1 else image or None
    return image.get("path") if isinstance(image, dict) else image


def _raw_turns(sample: dict[str, Any]) -> list[dict[str, Any]]:
    turns = first_of(sample, ("conversations", "messages"))
    return turns if isinstance(turns, list) and all(isinstance(turn, dict) for turn in turns) else []


def _parts(turn: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the parts of a turn whose content is a list of texts and pictures."""
    content = first_of(turn, ("content", "value"))
    return [part for part in content if isinstance(part, dict)] if isinstance(content, list) else []


def _find_turns(sample: dict[str, Any]) -> list[Turn]:
    """Returns the turns of the two who talk, without those of the system."""
    turns = []
    for turn in _raw_turns(sample):
        role, text = first_of(turn, ("from", "role")), first_of(turn, ("value", "content"))
        shows_image = isinstance(text, str) and "<image>" in text
        if parts := _parts(turn):
            shows_image = any("image" in str(part.get("type")) for part in parts)
            text = " ".join(part["text"] for part in parts if isinstance(part.get("text"), str))
        if role != "system":
            role = _ROLES.get(role, "") if isinstance(role, str) else ""
            turns.append(Turn(role, text if isinstance(text, str) else None, shows_image))
    return turns


def _pair(turns: list[Turn], sample: dict[str, Any], all_questions: bool) -> list[tuple[str, str | None]]:
    """Returns the questions that count, with their answers."""
    pairs = [
        (number, question, answer.text)
        for number, (question, answer) in enumerate(pairwise(turns))
        if question.role == "human" and answer.role == "gpt"
    ]
    if all_questions:
        texts = [(turn.text or "").replace("<image>", " ") for turn in turns]
        return [(join_turns(texts[: number + 1]), answer) for number, _, answer in pairs]
    show_image = [pair for pair in pairs if pair[1].shows_image]
    pairs = show_image or (pairs[:1] if sample.get("messages") is not None else [])
    return [(question.text or "", answer) for _, question, answer in pairs]


__all__ = ["find_llava", "read_llava"]

"""VQA accuracy: how many of ten people gave an answer, with the normalisation of the official evaluation.

Antol et al., "VQA: Visual Question Answering", ICCV 2015; the official code is
https://github.com/GT-Vision-Lab/VQA, PythonEvaluationTools/vqaEvaluation/vqaEval.py.
"""

import re
from collections.abc import Sequence

import numpy as np

ANSWERS_A_QUESTION = 10

# An answer is right if so many of the other people gave it.
_AGREEING = 3

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_COMMA_IN_NUMBER = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
_ARTICLES = {"a", "an", "the"}
_NUMBER_WORDS = "zero one two three four five six seven eight nine ten"
_NUMBERS = {"none": "0"} | {word: str(number) for number, word in enumerate(_NUMBER_WORDS.split())}

# Words that are completed where their one apostrophe is missing.
_CONTRACTIONS = """
    ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how'd how'll how's isn't
    it'd it'll ma'am mightn't might've mustn't must've needn't not've o'clock oughtn't shan't should've shouldn't
    somebody'll somebody's someone'd someone'll someone's something'd something'll that's there'd there're there's
    they'd they'll they're they've 'twas wasn't we've weren't what'll what're what's what've when's where'd where's
    where've who'd who'll who's who've why'll why're why's won't would've wouldn't y'all you'd you'll you're you've
"""
# Words that are completed where either of their apostrophes is missing.
_DOUBLE_CONTRACTIONS = """
    couldn't've hadn't've he'd've it'd've mightn't've she'd've shouldn't've somebody'd've someone'd've something'd've
    there'd've they'd've we'd've who'd've wouldn't've y'all'll you'd've
"""


def _completions() -> dict[str, str]:
    found = {word.replace("'", ""): word for word in _CONTRACTIONS.split()}
    for word in _DOUBLE_CONTRACTIONS.split():
        found |= {word[: at.start()] + word[at.end() :]: word for at in re.finditer("'", word)}
    return found | {"somebody'd": "somebodyd"}  # as the official code has it


_COMPLETIONS = _completions()


def normalize_answer(answer: str) -> str:
    """Returns an answer as the official evaluation compares it.

    It is lowercase, without punctuation and articles, with digits for the numbers up to ten, and with the apostrophes
    of common contractions.
    """
    words = _strip_punctuation(" ".join(re.split(r"[\n\t]", answer)).strip()).lower().split()
    words = [_NUMBERS.get(word, word) for word in words]
    return " ".join(_COMPLETIONS.get(word, word) for word in words if word not in _ARTICLES)


def score_vqa(answers: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """Returns the VQA accuracy of each answer [N], a fraction; the value of a corpus is their mean.

    An answer's accuracy is min(n / 3, 1), where n of the other nine people gave it, averaged over the ten ways to
    leave one of them out. As in the official code, people's answers keep articles and number words, which the released
    ones do not have, and lose their punctuation only where the ten differ.

    Args:
        answers: An answer to each question.
        references: The answers of ten people to each question.

    Raises:
        ValueError: A question does not have ten answers, or the numbers of questions differ.
    """
    scores = []
    for answer, people in zip(answers, references, strict=True):
        if len(people) != ANSWERS_A_QUESTION:
            raise ValueError(f"VQA accuracy needs {ANSWERS_A_QUESTION} answers to a question, not {len(people)}.")
        theirs = [text.lower() for text in people]  # as the released answers are already
        if len(set(theirs)) > 1:
            theirs = [_strip_punctuation(text) for text in theirs]
        given = normalize_answer(answer)
        agrees = np.array([text == given for text in theirs])
        scores.append(np.minimum((agrees.sum() - agrees) / _AGREEING, 1).mean())
    return np.array(scores)


def _strip_punctuation(text: str) -> str:
    stripped = text
    for mark in _PUNCTUATION:
        is_dropped = f"{mark} " in text or f" {mark}" in text or _COMMA_IN_NUMBER.search(text)
        stripped = stripped.replace(mark, "" if is_dropped else " ")
    return _PERIOD.sub("", stripped)

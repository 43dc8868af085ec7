"""Captions as text: the one cleaning of them, and the choice among an image's several."""

import hashlib
import re
import unicodedata
from dataclasses import dataclass
from typing import Literal

# The space before a mark that stands alone (" ." but not " .5" or " ..."), before "'s", and inside round brackets.
_TOKENIZER_SPACE = re.compile(r" (?=[.,;:!?)](?: |$)|'s(?![\w']))|(?<=\() ")

# Full stops of Latin, Chinese and Japanese, Devanagari and its neighbours, Urdu; and the ellipsis, which stays.
FULL_STOPS = ".。।\u06d4"
_ELLIPSIS = "…"

FinalStop = Literal["keep", "add", "remove"]


@dataclass(frozen=True, slots=True)
class Cleaning:
    """What is done to every caption, and which captions are left out.

    Attributes:
        final_stop, lower_case: See `clean_caption`.
        min_words, max_words: A caption with fewer or more words, as spaces part them, is left out and counted. None:
            no bound; then an empty caption is a fault in the data.
    """

    final_stop: FinalStop = "keep"
    lower_case: bool = False
    min_words: int | None = None
    max_words: int | None = None

    def clean(self, text: str) -> str:
        """Returns the cleaned caption."""
        return clean_caption(text, self.final_stop, self.lower_case)


def clean_caption(text: str, final_stop: FinalStop = "keep", lower_case: bool = False) -> str:
    """Undoes a tokenized corpus's spacing: "A dog 's bone , in  the way .\\n" becomes "A dog's bone, in the way.".

    Runs of whitespace become one space, none is left at the ends, and none before a free-standing `.` `,` `;` `:` `!`
    `?` `)`, before `'s`, or after `(`. Quotation marks keep their spaces, for opening and closing ones look alike.
    Letters and accents are composed (Unicode NFC), so that text typed on different systems has the same tokens.
    Every other character stays, in its order: joiners of emoji, Persian and Indic scripts too. Cleaning twice changes
    nothing more.

    Args:
        text: The caption as the corpus has it.
        final_stop: "add" appends a full stop to a caption that does not end in punctuation; "remove" removes a single
            full stop at the end, unless nothing else is left; "keep" does neither.
        lower_case: Whether to lowercase the caption.
    """
    if lower_case:
        text = text.lower()
    text = _TOKENIZER_SPACE.sub("", " ".join(unicodedata.normalize("NFC", text).split()))
    if final_stop == "add" and text and not unicodedata.category(text[-1]).startswith("P"):
        return f"{text}."
    if final_stop == "remove" and text and text[-1] in FULL_STOPS:
        body = _TOKENIZER_SPACE.sub("", text[:-1].rstrip())  # a mark before the full stop now ends the caption
        if body and body[-1] not in FULL_STOPS + _ELLIPSIS:
            return body
    return text


def clean_question(text: str) -> str:
    """Cleans each line of a question as `clean_caption` does. Lines part what was said before, or a choice of answers;
    empty ones are removed."""
    return "\n".join(line for line in map(clean_caption, text.splitlines()) if line)


def count_words(caption: str) -> int:
    """Counts the words of a cleaned caption, separated by spaces. Scripts without spaces have few."""
    return len(caption.split())


class CaptionChoice:
    """Which of an image's captions are trained on.

    Args:
        captions_per_image: "all"; "first"; or "sample", one of them in each epoch, drawn evenly by a hash of seed,
            epoch and image: the same one after a run was stopped and resumed.
        seed: The seed of the draw.

    Attributes:
        epoch: The epoch to draw for, from 0; the training loop sets it.
    """

    def __init__(self, captions_per_image: Literal["all", "sample", "first"] = "all", seed: int = 0):
        self.captions_per_image, self.seed = captions_per_image, seed
        self.epoch = 0

    def __call__(self, row: dict) -> list[str]:
        """Returns the captions to train on, for a row with `image` and `captions`."""
        captions = row["captions"]
        if self.captions_per_image == "all":
            return captions
        if self.captions_per_image == "first":
            return captions[:1]
        draw = hashlib.sha256(f"{self.seed} {self.epoch} {row['image']}".encode()).digest()
        return [captions[int.from_bytes(draw[:8]) % len(captions)]]


class TargetChoice:
    """Draws one target of each caption: "one random next token a caption".

    A caption of n tokens has n targets, each drawn with probability 1/n by a hash of seed, epoch and image, so that a
    resumed run draws the same ones. The drawn one counts n times: on average, loss and gradient are those of all
    targets.

    Args:
        seed: Of the draw.

    Attributes:
        epoch: The epoch to draw for, from 0; the training loop sets it.
    """

    def __init__(self, seed: int = 0):
        self.seed, self.epoch = seed, 0

    def __call__(self, row: dict, lengths: list[int]) -> list[int]:
        """Returns the index of each caption's target, for a row with `image`; `lengths` counts tokens."""
        stem = f"target {self.seed} {self.epoch} {row['image']}"
        draws = (hashlib.sha256(f"{stem} {number}".encode()).digest() for number in range(len(lengths)))
        return [int.from_bytes(draw[:8]) % length for draw, length in zip(draws, lengths, strict=True)]

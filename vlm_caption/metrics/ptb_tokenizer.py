"""Penn Treebank tokens as COCO's caption evaluation makes them, without Java.

pycocoevalcap sends captions through Stanford's PTBTokenizer (CoreNLP 3.4.1, options `-preserveLines -lowerCase`) and
drops punctuation; published scores stand on these tokens. `tokenize` gives the same ones. No library does: NLTK 3.10,
the nearest, differs on 14 of Flickr8k's 35,000 captions and on 60 of 29,902 of MS COCO, and on four of five sentences
in `tests/metrics/ptb_cases.jsonl`.
"""

import re
import unicodedata
from collections.abc import Iterator, Sequence
from functools import cache

from .lexer import Lexer
from .ptb_rules import DEFINITIONS, RULES

# As in pycocoevalcap/tokenizer/ptbtokenizer.py. Its brackets are in capitals, the tokens are not: so they stay.
PUNCTUATION = frozenset(
    ["''", "'", "``", "`", "-LRB-", "-RRB-", "-LCB-", "-RCB-", ".", "?", "!", ",", ":", "-", "--", "...", ";"]
)

# Most of a caption: words of plain letters with one space behind. No rule looks past that space, and but for those
# that are split the words are tokens as they stand. The automaton reads the rest.
_PLAIN_WORDS = re.compile(r"(?:[A-Za-z]+ (?=\S))+")
_SPLITS = {"cannot": 3, "gonna": 2, "gotta": 2, "lemme": 2, "gimme": 2, "wanna": 2}

# A capital sigma at a word's end gets its own small letter. Where a word ends, Java's break iterator says: not before
# a hyphen between letters, but before an ideograph.
_RUN = "[^\\W\u3041-\u30ff\u4e00-\u9fa5\uf900-\ufa2d]"
_WORD_OF_SIGMA = re.compile(f"{_RUN}+(?:(?<!\\d)[-.'\"\u00ad\u2010-\u2015\u2027](?!\\d){_RUN}+)*")

_SURROGATES = re.compile("[\ud800-\udfff]")


def tokenize(captions: Sequence[str]) -> list[str]:
    """The tokens of each caption, lower-cased and without punctuation, one space between two.

    As in pycocoevalcap the captions are the lines of one text, so how one ends can depend on how the next begins: of
    "Plan B." stays "b" before "A dog" but "b." before "Two dogs". No token runs over the end of its caption, though,
    and other line breaks in a caption are spaces, where pycocoevalcap would give its tokens to the captions after it.
    """
    lines = [caption.replace("\n", " ") for caption in captions]
    return [" ".join(token for token in tokens if token not in PUNCTUATION).rstrip() for tokens in lex(lines)]


def lex(lines: Sequence[str]) -> Iterator[list[str]]:
    """The lower-cased tokens of each line with punctuation: PTBTokenizer's own output.

    Args:
        lines: strings without "\\n".
    """
    # The original reads UTF-16: a character beyond U+FFFF is two that no word holds.
    lines = ["".join(_to_code_units(line)) if not line.isascii() else line for line in lines]
    text = "\n".join(lines)
    position = start = 0
    for line in lines:
        end = start + len(line)
        tokens: list[str] = []
        position = start
        while position < end:
            plain = _PLAIN_WORDS.match(text, position, end)
            if plain is None:
                token, position = _next_token(text, position, end)
                if token is not None:
                    tokens.append(_lower(_from_code_units(token)))
                continue
            words = plain.group().lower().split()
            if _SPLITS.keys().isdisjoint(words):
                tokens += words
            else:
                tokens += [part for word in words for part in _split(word)]
            position = plain.end()
        yield tokens
        start = end + 1


@cache
def _get_lexer() -> Lexer:
    return Lexer([(rule.pattern, rule.context) for rule in RULES], DEFINITIONS)


def _next_token(text: str, start: int, line_end: int) -> tuple[str | None, int]:
    """The token at `start`, None where there is none, and where to go on."""
    index, end = _get_lexer().match(text, start)
    if end > line_end:
        index, end = _get_lexer().match(text[:line_end], start)
    rule = RULES[index]
    return rule.token(text[start:end]), end - rule.give_back


def _split(word: str) -> list[str]:
    if word not in _SPLITS:
        return [word]
    return [word[: -_SPLITS[word]], word[-_SPLITS[word] :]]


def _lower(token: str) -> str:
    """As `String.toLowerCase` of Java."""
    return (_WORD_OF_SIGMA.sub(_lower_sigmas, token) if "\u03a3" in token else token).lower()


def _lower_sigmas(word: re.Match) -> str:
    cased = [letter for letter in word.group() if unicodedata.category(letter) in ("Lu", "Ll", "Lt")]
    before, _, after = word.group().rpartition("\u03a3")
    if len(cased) > 1 and cased[-1] == "\u03a3":
        return before.replace("\u03a3", "\u03c3") + "\u03c2" + after
    return word.group().replace("\u03a3", "\u03c3")


def _to_code_units(text: str) -> Iterator[str]:
    units = text.encode("utf-16-le", "surrogatepass")
    return (chr(low + 256 * high) for low, high in zip(units[::2], units[1::2], strict=True))


def _from_code_units(token: str) -> str:
    if token.isascii():
        return token
    whole = token.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "surrogatepass")
    return _SURROGATES.sub("?", whole)  # half a character cannot be written

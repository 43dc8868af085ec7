"""The tokenizers of the metrics: words of the Penn Treebank, or single characters for scripts without spaces."""

import re
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from typing import Literal

from . import ptb_tokens

Tokenizer = Literal["ptb", "characters"]

# Thai, Lao, Tibetan, Myanmar, Khmer; kana, bopomofo and Han with their iteration marks; kana of half width.
_UNSPACED = re.compile(
    r"[\u0e01-\u0e3a\u0e40-\u0e4e\u0e80-\u0ece\u0edc-\u0edf\u0f00\u0f40-\u0fbc\u1000-\u103f\u1050-\u109d\u1780-\u17d3"
    r"\u3005-\u3007\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u31f0-\u31ff\u3400-\u4dbf"
    r"\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff]"
)


def choose_tokenizer(texts: Iterable[str]) -> Tokenizer:
    """Returns "characters" if most letters of the texts are of scripts without spaces between words, else "ptb"."""
    letters = unspaced = 0
    for text in texts:
        unspaced += len(_UNSPACED.findall(text))
        letters += sum(map(str.isalpha, text))
    return "characters" if 2 * unspaced > letters else "ptb"


def tokenize_characters(captions: Sequence[str]) -> list[str]:
    """Returns the tokens of each caption in lowercase and without punctuation, separated by single spaces.

    A character of a script without spaces is a token, with the vowel and tone signs on it, and so is a word of any
    other script. For Chinese these are the tokens of sacreBLEU's tokenizer `zh` (Post, "A Call for Clarity in
    Reporting BLEU Scores", WMT 2018), without punctuation. They need no dictionary, unlike the words that the AI
    Challenger scores (Wu et al., "AI Challenger: A Large-scale Dataset for Going Deeper in Image Understanding", 2017)
    and that papers on COCO-CN (Li et al. 2019) may score.

    Args:
        captions: Captions in any language.
    """
    return [" ".join(_characters(unicodedata.normalize("NFC", caption).lower())) for caption in captions]


def _characters(text: str) -> list[str]:
    tokens: list[str] = []
    joins = False  # whether the next letter belongs to the last token
    for character in text:
        category = unicodedata.category(character)
        if category.startswith("M") and tokens:
            tokens[-1] += character
        elif _UNSPACED.match(character):
            tokens.append(character)
            joins = False
        elif category[0] in "LNM":
            if joins:
                tokens[-1] += character
            else:
                tokens.append(character)
            joins = True
        else:
            joins = False
    return tokens


def tokenize_with(tokenizer: Tokenizer, captions: Sequence[str]) -> list[str]:
    """Returns the tokens of each caption, separated by single spaces."""
    tokenizers: dict[Tokenizer, Callable[[Sequence[str]], list[str]]] = {
        "ptb": ptb_tokens.tokenize,
        "characters": tokenize_characters,
    }
    return tokenizers[tokenizer](captions)

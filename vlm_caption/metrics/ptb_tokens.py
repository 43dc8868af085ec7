"""Penn Treebank tokens of captions, as COCO's caption evaluation counts them, without Java.

pycocoevalcap tokenizes captions with a Java program, Stanford's PTBTokenizer, and drops punctuation; published scores
depend on these tokens. This module was written from the documented conventions of the Penn Treebank and from the
observed output of the Java program; it shares no code or rules with CoreNLP. It gives the program's tokens for the
captions of Flickr8k, MS COCO and Pascal sentences. `docs/evaluation.md` lists where the two differ on odder text.
"""

import re
from collections.abc import Sequence

# Abbreviations that keep their period: titles, dates, places, streets, companies, and others.
_ABBREVIATIONS = """
    mr mrs ms dr drs st ste jr sr esq mme mlle messrs gen col capt cmdr comdr lt lieut maj sgt cpl pvt pfc adm ens gov
    sen sens rep reps pres rev hon insp det supt asst prof treas atty attys
    jan feb mar apr jun jul aug sep sept oct nov dec mon tue tues wed thu thurs fri
    ala ariz calif colo conn ct dak fla ga ill ind kan kans ky md mich minn mo mont neb nev okla penn tenn va vt wis
    wyo ave blvd rd rt sq mt ft bldg dept univ tel
    inc co corp ltd bros assn assoc bancorp cie plc pty bhd natl intl
    etc al cf vs est ext elec adv adj seq ph cont'd
"""
_ABBREVIATIONS_IF_CAPITALIZED = "ark az del la mass miss ore pa tex wash"  # words otherwise
_ABBREVIATIONS_OF_NUMBERS = "no nos fig figs art prop op pp ca"  # if a number is next

# A single letter with a period ended a sentence if one of these begins the next, and is an initial otherwise.
_SENTENCE_STARTERS = """
    a about according after an as at but earlier he her here however if in it last many more now once one other our she
    since so some such that the their then there these they this we what when while yet you mr mrs ms dr
"""

# A letter or digit is what is neither a space nor punctuation nor a symbol: `\w` misses the vowel signs of Hindi. Some
# symbols are tokens. The Java program drops others, such as emoji.
_OTHERS = (
    r"\x00-/:-@\[-`{-\xa9\xab-\xb4\xb6-\xb9\xbb-\xbf\xd7\xf7\u02c2-\u02c5\u060c\u061b\u061f\u06d4\u0964\u0965\u0e3f\u1680"
    r"\u2000-\u2bff\u3000-\u3004\u3008-\u3030\u30fb\ud800-\uf8ff\ufe10-\ufe6f\ufeff-\uff0f\uff1a-\uff20\uff3b-\uff40"
    r"\uff5b-\uff65\uffe0-\U0010ffff"
)
_SYMBOL = (
    r"[!#-&(-,./:-_a-~\x80\xa1-\xaa\xac-\xb9\xbc-\xf7\u060c\u061b\u061f\u06d4\u0964\u0965\u0e3f\u201a\u201e-\u2023"
    r"\u2030-\u2038\u203b-\u2042\u2044\u2070-\u20a0\u20a4\u20ac\u2100-\u215e\u2190-\u2bff\u3001\u3002\u3012\u30fb"
    r"\uff01-\uff65\uffe0-\uffe6]"
)


def _any_of(words: str) -> str:
    return "(?i:" + "|".join(words.split()) + ")"


def _any_capitalized(words: str) -> str:
    return "(?:" + "|".join(f"{word[0].upper()}(?i:{word[1:]})" for word in words.split()) + ")"


_L = rf"[^{_OTHERS}\d]"  # a letter
_A = f"[^{_OTHERS}]"  # a letter or digit
_END = f"(?!{_A})"
_WORD = f"{_L}{_A}*"
_HYPHENATED = rf"{_A}+(?:[-_\u2010\u2011]{_A}+)*"
_APOSTROPHE = r"['\u2019]"
_NUMBER = r"\d+(?:[.,:]\d+)*"

# The alternatives are tried in this order. What none matches is no token: spaces, most quotes, dashes, emoji.
_TOKEN = rf"""
    \n
  # Most of a caption: runs of words of plain letters; a period or comma; abbreviations; the last word
  | [A-Za-z]+(?:[ ][A-Za-z]+)* (?=[ \n])
  | [.,] (?=\s)
  | (?=[A-Za-z]{{2,8}}(?:'d)?\.{_END}) {_any_of(_ABBREVIATIONS)}\.(?:-{_A}+)*
  | {_any_capitalized(_ABBREVIATIONS_IF_CAPITALIZED)}\.{_END}
  | {_any_of(_ABBREVIATIONS_OF_NUMBERS)}\. (?=\s?\d)
  | [A-Za-z]{{2,}} (?=[.,]?\s)
  | {_HYPHENATED}\. (?=[,;:])
  # Markup, links, e-mail addresses, entities, mentions, hashtags
  | <[A-Za-z][\w.@-]*(?:[ ][\w-]+(?:=(?:"[^"\n]*"|'[^'\n]*'))?)*[ ]?/?> | </[A-Za-z]\w*> | <![^<>\n]*>
  | (?i:https?)://[^\s"<>|(){{}}\u201c\u201d]*[^\s"<>|(){{}}\u201c\u201d.,?!-]
  | (?:{_WORD}\.)+(?:com|net|org)/[\w.?=&%~+/-]+[\w/] | (?i:www)(?:\.{_A}[\w-]*)+
  | {_A}[\w.+-]*@[^\s"<>|(){{}}.]+(?:\.[^\s"<>|(){{}}.]+)*
  | {_A}*&(?:\#\d+|[A-Za-z]{{2,8}}); | @(?!\d)\w+ | \#{_L}+ | -(?i:[lr][rcs]b)-
  # Faces
  | [:;=]'?-?o?[()DdPp|O3@{{]{_END} | [>-][_.][<-] | \(?\^[_.]\^\)? | \(\^-\^\) | \(-_?-\)
  # Numbers: telephone, mixed fraction, with a sign, with a point in front, with a unit behind a hyphen
  | \+?\(?\d{{2,4}}\)?[ \xa0-]?\d{{3,4}}[ \xa0-]\d{{3,4}}(?!\d) | \d+[ \xa0]\d+/\d+{_END} | \d+\u2044\d+
  | (?<![+-])[+-][.,:]?{_NUMBER} | (?<!\.\.)[.,:]{_NUMBER} | \d+(?:[.,]\d+)+(?:-{_A}+)* | \d+(?:[.,:]\d+)+
  # Contractions, years, and names and words with an apostrophe inside
  | {_L}+ (?=(?i:n['\u2019`\u2018]t){_END}) | (?i:n['\u2019`\u2018]t){_END} | ''
  | {_APOSTROPHE}(?i:em|till?|cause|n{_APOSTROPHE}) | {_APOSTROPHE}(?i:[smd]|re|ve|ll|n){_END} | '(?i:t)(?=(?i:is|was))
  | {_APOSTROPHE}\d\d(?!\S) | {_APOSTROPHE}\d0[sS]{_END}
  | (?!.{_APOSTROPHE}(?i:ll|ve|re|em){_END}) (?:{_A}+-)*[A-XZodln]{_APOSTROPHE}{_L}{{2,}}
  | {_L}+[aeiou]{_APOSTROPHE}(?!(?i:em){_END})[aeiou]{_L}*
  | (?i:ma'am|c'mon|s'mores|cap'n|li'l|nat'l|ev'ry|n?e'er|o'er|nor'easter|c'est|(?:ol|somethin|dunkin)'{_END})
  | [yY]{_APOSTROPHE}(?={_L}) | [jldJLD]{_APOSTROPHE}(?!(?i:[smd]|re|ve|ll){_END})
  # Initials and acronyms
  | [A-Za-z]\. (?!{_L}) (?!\s+{_any_capitalized(_SENTENCE_STARTERS)}\s)
  | (?:{_A}+-)*(?:(?:[A-Za-z]\.){{2,}}|(?i:ph\.d\.)) (?!{_L}) (?:-(?:(?:[A-Za-z]\.)+|{_A}+))*
  # Words with signs inside
  | [A-Z]+(?:[&+][A-Z]+)+ | [A-Z]+\$ | (?<!{_A})(?:[CcFf]\#|[Cc]\+\+)
  | (?>{_WORD}(?:\.{_WORD})+(?:-{_A}+)*)(?![!?]{_L}) | {_WORD}(?:[.!?]{_WORD})+
  | {_HYPHENATED}(?:\\?/{_HYPHENATED}){{0,2}}
  # Runs of punctuation, and single symbols
  | [?!]{{2,}} | -{{5,}} | _+ | \\?\*+ | \#+ | @+ | <<+ | >>+ | {_SYMBOL}
    """

# As in pycocoevalcap/tokenizer/ptbtokenizer.py, as far as `_TOKEN` matches any. Its list has brackets in capitals,
# where the tokens are in lowercase, so brackets stay.
_PUNCTUATION = frozenset([".", "?", "!", ",", ":", ";", "''"])
_ENTITIES = {"amp": "&", "lt": "<", "gt": ">", "quot": '"', "apos": "'"}  # others that are known are spaces and dashes
_SPLITS = {
    "cannot": "can not",
    "gimme": "gim me",
    "gonna": "gon na",
    "gotta": "got ta",
    "lemme": "lem me",
    "wanna": "wan na",
}
_SPELLINGS = str.maketrans(
    {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}
    | {"£": "#", "€": "$", "\x80": "$", "¢": "cents", "¼": "1/4", "½": "1/2", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}
    | {"\u2018": "`"}
)


def tokenize(captions: Sequence[str]) -> list[str]:
    """Returns the tokens of each caption in lowercase and without punctuation, separated by single spaces.

    A token that holds a space, such as the number "5 7/8", holds a no-break space instead. As in pycocoevalcap, the
    captions are the lines of one text, so how one ends can depend on how the next begins: "Plan B." gives "plan b"
    before "A dog", where B ends a sentence, but "plan b." before "Two dogs". Line breaks inside a caption are spaces.

    Args:
        captions: Captions in English.
    """
    if not captions:
        return []
    text = "\n".join([" ".join(caption.splitlines()) for caption in captions]).replace("\xad", "")
    if "&" in text:
        entity = re.compile("&(amp|lt|gt|quot|apos|nbsp|[mn]dash|md);", re.IGNORECASE)
        text = entity.sub(lambda match: _ENTITIES.get(match[1].lower(), " "), text)
    text = re.sub(rf"\u2019(?=(?i:[smd]|re|ve|ll|t){_END})", "'", text)
    tokens = [
        token.replace(" ", "\xa0") if token[0] in "<+(0123456789" else token
        for token in re.findall(_TOKEN, text, re.VERBOSE)
        if token not in _PUNCTUATION
    ]
    joined = " ".join(tokens).lower()
    for word, parts in _SPLITS.items():
        if word in joined:
            joined = re.sub(rf"(?<![^ \n]){word}(?![^ \n])", parts, joined)
    return [line.strip(" ") for line in joined.translate(_SPELLINGS).split("\n")]

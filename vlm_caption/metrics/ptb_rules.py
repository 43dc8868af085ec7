"""The token rules of Stanford's PTBTokenizer, the version that pycocoevalcap runs.

They restate the grammar `PTBLexer.flex` of Stanford CoreNLP 3.4.1 (August 2014; Tim Grow, Christopher Manning, Jenny
Finkel) as far as its default options use it. Names in capitals are the grammar's own where it has one, so that a rule
can be looked up there; the notation is that of `lexer.py`. What looks odd is as odd there, for the sake of the same
tokens: one smiley runs on to the next "<", and "o'" before "o" is a word.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from .lexer import CharSet
from .ptb_characters import DIGITS, LETTERS, MARKS, SYMBOLS, UPPERCASE

DEFINITIONS: dict[str, str | CharSet] = {
    "ANY": r"(.|\n)",
    "DIGIT": DIGITS,
    "LETTERCHAR": LETTERS,
    "MARK": MARKS,
    "SYMBOL": SYMBOLS,
    "UPPER": UPPERCASE,
    # Space.
    "SPACE": "[ \t\u00a0\u2000-\u200a\u3000]",
    "NEWLINE": r"\r|\r?\n|[" + "\u2028\u2029\u000b\u000c\u0085]",
    "SPACENL": "({SPACE}|{NEWLINE})",
    # Markup of old corpora.
    "TAGNAME": r"[A-Za-z][A-Za-z0-9_:.\-]*",
    "ATTRIBUTE": """{TAGNAME}([ ]*=[ ]*('[^']*'|"[^"]*"))?""",
    "SGML": r"<([!?][A-Za-z\-][^>\r\n]*|{TAGNAME}([ ]+{ATTRIBUTE})*[ ]*\/?|\/{TAGNAME})[ ]*>",
    "SPMDASH": "&(MD|mdash|ndash);|[\u0096\u0097\u2013\u2014\u2015]",
    "SPPUNC": "&(HT|TL|UR|LR|QC|QL|QR|odq|cdq|#[0-9]+);",
    "SPLET": "&[aeiouAEIOU](acute|grave|uml);",
    # Quotation marks.
    "APOS": "(['\u0092\u2019]|&apos;)",
    "APOSETCETERA": "({APOS}|[`\u0091\u2018\u201b])",
    "DBLQUOT": '("|&quot;)',
    "QUOTES": "({APOS}|''|[`\u2018-\u201f\u0091-\u0094\u2039\u203a\u00ab\u00bb]{1,2})",
    # Words.
    "LETTER": "({LETTERCHAR}|{SPLET}|{MARK}|\u00ad)",
    "ALNUM": "({LETTERCHAR}|{DIGIT})",
    "WORDPART": "{LETTER}({LETTER}|{DIGIT})*",
    "WORD": "{WORDPART}([.!?]{WORDPART})*",
    "HYPHEN": "[\\-_\u058a\u2010\u2011]",
    "THINGPART": "([dDoOlL]{APOSETCETERA}{ALNUM})?{ALNUM}+",
    "THING": "{THINGPART}({HYPHEN}{THINGPART})*",
    "THINGA": "[A-Z]+(([+&]|&amp;)[A-Z]+)+",
    "SLASHPART": "[A-Za-z0-9]+(-[A-Za-z]+){0,2}",
    "THING3": r"{SLASHPART}(\\?\/{SLASHPART}){1,2}",
    "HTHING": "[A-Za-z0-9][A-Za-z0-9.,\u00ad]*(-([A-Za-z0-9\u00ad]+|{ACRO2}\\.))+",
    # Contractions: the words that keep their apostrophe, then 's 'll n't and what they hang on. SWORD ends in no n.
    "APOWORD": (
        "({APOS}n{APOS}?|[lLdDjJ]{APOS}|(Dunkin|somethin|ol){APOS}|{APOS}(em|till?|cause|[2-9]0s)"
        "|[A-HJ-XZn]{APOSETCETERA}{LETTERCHAR}{LETTERCHAR}+|{LETTERCHAR}+[aeiouyAEIOUY]{APOSETCETERA}[aeiouA-Z]"
        "{LETTERCHAR}*|cont'd\\.?|nor'easter|c'mon|e'er|s'mores|ev'ry|li'l|nat'l|o{APOSETCETERA}o)"
    ),
    "REDAUX": "{APOS}([msdMSD]|re|ve|ll)",
    "SREDAUX": "n{APOSETCETERA}t",
    "SWORD": "[A-Za-z\u00ad]*[A-MO-Za-mo-z]\u00ad*",
    "TBSPEC": (r"(-(LRB|RRB|LCB|RCB|LSB|RSB)-|C\.D\.s|pro-|anti-|S(&|&amp;)P-500|S(&|&amp;)Ls|Cap{APOS}n|c{APOS}est)"),
    # Numbers.
    "NUM": "({DIGIT}+|{DIGIT}*([.:,\u00ad\u066b\u066c]{DIGIT}+)+)",
    "SUBSUPNUM": "[\u207a\u207b\u208a\u208b]?([\u2070\u00b9\u00b2\u00b3\u2074-\u2079]+|[\u2080-\u2089]+)",
    "DATE": r"{DIGIT}{1,2}[\-\/]{DIGIT}{1,2}[\-\/]{DIGIT}{2,4}",
    "FRAC": "({DIGIT}{1,4}[\\- \u00a0])?{DIGIT}{1,4}(\\\\?\\/|\u2044){DIGIT}{1,4}",
    "FRAC2": "[\u00bc\u00bd\u00be\u2153-\u215e]",
    "DOLSIGN": r"([A-Z]*\$|#)",
    "DOLSIGN2": "[\u00a2\u00a3\u00a4\u00a5\u0080\u20a0\u20a4\u20ac\u060b\u0e3f\uffe0\uffe1\uffe5\uffe6]",
    "DIAL": "[\\- \u00a0]",
    "AREA": "(\\([0-9]{2,3}\\)[ \u00a0]?|(\\+\\+?)?([0-9]{2,4}{DIAL})?[0-9]{2,4}{DIAL})",
    "PHONE": (r"({AREA}[0-9]{3,4}{DIAL}?[0-9]{3,5}|((\+\+?)?[0-9]{2,4}\.)?[0-9]{2,4}\.[0-9]{3,4}\.[0-9]{3,5})"),
    # The net. In LIKELYURL, `,-_` is a range.
    "FULLURL": r"""https?:\/\/[^ \t\n\f\r"<>|(){}]+[^ \t\n\f\r"<>|.!?(){},\-]""",
    "URLPATH": r"""\/[^ \t\n\f\r"<>|()]+[^ \t\n\f\r"<>|.!?(){},\-]""",
    "LIKELYURL": (
        r"""(www\.([^ \t\n\f\r"<>|.!?(){},]+\.)+[a-zA-Z]{2,4}"""
        r"""|([^ \t\n\f\r"`'<>|.!?(){},-_$]+\.)+(com|net|org|edu))({URLPATH})?"""
    ),
    "MAILCHAR": '[^ \\t\\n\\f\\r"<>|(){}.\u00a0]',
    "EMAIL": ('(&lt;|<)?[a-zA-Z0-9][^ \\t\\n\\f\\r"<>|()\u00a0{}]*@({MAILCHAR}+\\.)*{MAILCHAR}+(&gt;|>)?'),
    "TWITTER": "(@[a-zA-Z_][a-zA-Z_0-9]*|#{LETTER}+)",
    "FILENAME": (
        r"({LETTER}|{DIGIT})+(\.({LETTER}|{DIGIT})+)*\.(bat|bmp|c|class|cgi|cpp|dll|doc|docx|exe|gif|gz|h|htm|html|jar"
        r"|java|jpeg|jpg|mov|mp3|pdf|php|pl|png|ppt|ps|py|sql|tar|txt|wav|x|xml|zip)"
    ),
    # Abbreviations. A letter in [] counts in that case only.
    "NATIONS": r"(Canada|Sino|Korean|EU|Japan|non)-U\.S|U\.S\.-(U\.K|U\.S\.S\.R)",
    "ACRO": r"([A-Za-z](\.[A-Za-z])*|{NATIONS})",
    "ACRO2": r"([A-Za-z](\.[A-Za-z])+|{NATIONS})",
    "ABDATE": "Jan|Feb|Mar|Apr|Jun|Jul|Aug|Sept?|Oct|Nov|Dec|Mon|Tues?|Wed|Thu(rs)?|Fri",
    "ABSTATE": (
        "Ala|Ariz|[A]z|[A]rk|Calif|Colo|Conn|Ct|Dak|[D]el|Fla|Ga|[I]ll|Ind|Kans?|Ky|[L]a|[M]ass|Md|Mich|Minn|[M]iss"
        "|Mo|Mont|Neb|Nev|Okla|[O]re|[P]a|Penn|Tenn|[T]ex|Va|Vt|[W]ash|Wisc?|Wyo"
    ),
    "ABCOMP": "Inc|Cos?|Corp|Pp?t[ye]s?|Ltd|Plc|Rt|Bancorp|Bhd|Assn|Univ|Intl|Sys",
    # Mostly before a word in lower case: before a capital they end a sentence.
    "ABBREV1": (r"({ABDATE}|{ABSTATE}|{ABCOMP}|tel|est|ext|sq|Jr|Sr|Bros|(Ed|Ph)\.D|Blvd|Rd|Esq|etc|al|seq|Bldg)\."),
    "ABTITLE": (
        "Mr|Mrs|Ms|[M]iss|Drs?|Profs?|Sens?|Reps?|Attys?|Lt|Col|Gen|Messrs|Govs?|Adm|Rev|Maj|Sgt|Cpl|Pvt|Capt|Ste?"
        "|Ave|Pres|Lieut|Hon|Brig|Co?mdr|Pfc|Spc|Supts?|Det|Mt|Ft|Adj|Adv|Asst|Assoc|Ens|Insp|Mlle|Mme|Msgr|Sfc"
    ),
    # Mostly before a word with a capital: they end no sentence.
    "ABBREV4": (r"({ABTITLE}|vs|Alex|Wm|Jos|Cie|a\.k\.a|cf|TREAS|Ph|{ACRO}|Invt|Elec|Natl|M[ft]g|Dept)"),
    # Before a number.
    "ABBREV3": r"(ca|figs?|prop|nos?|art|bldg|pp|op)\.",
    # What follows an acronym only if that ended a sentence.
    "SENTEND": "{SPACENL}({SPACENL}|{UPPER}|{SGML})",
    "STARTER": (
        "([A]bout|[A]ccording|[A]dditionally|[A]fter|[A]n|[A]|[A]s|[A]t|[B]ut|[E]arlier|[H]e|[H]er|[H]ere|[H]owever|[I]f"
        r"|[I]n|[I]t|[L]ast|[M]any|[M]ore|[M]r\.|[M]s\.|[N]ow|[O]nce|[O]ne|[O]ther|[O]ur|[S]he|[S]ince|[S]o|[S]ome|[S]uch"
        "|[T]hat|[T]he|[T]heir|[T]hen|[T]here|[T]hese|[T]hey|[T]his|[W]e|[W]hen|[W]hile|[W]hat|[Y]et|[Y]ou|{SGML})"
    ),
    # Punctuation.
    "INSENTP": "[,;:\u3001]",
    "LDOTS": "(\\.{3,5}|(\\.[ \u00a0]){2,4}\\.|[\u0085\u2026])",
    "SENTMARK": "[.\u00a1\u00bf\u037e\u0589\u061f\u06d4\u0700-\u0702\u07fa\u3002]",
    "SMILEY": r"[<>]?[:;=][\-o*']?[()DPdpO\\{@|\[\]]",
    "EYE": r"[\-\^x=~<>']",
    "ASIANSMILEY": (r"([\^x=~<>]\.\[\^x=[^<]*<>\]|{EYE}_{EYE}|\({EYE}[_.]?{EYE}\)|\([\^x=~<>']-[\^x=~<>'`]\))"),
}

_QUOTES = str.maketrans(
    dict.fromkeys("\u0091\u2018\u201b\u2039", "`")
    | dict.fromkeys("\u0092\u2019\u203a", "'")
    | dict.fromkeys("\u0093\u201c\u00ab", "``")
    | dict.fromkeys("\u0094\u201d\u00bb", "''")
)
_FRACTIONS = {"\u00bc": "1/4", "\u00bd": "1/2", "\u00be": "3/4", "\u2153": "1/3", "\u2154": "2/3"}
# The Treebank knows dollars and, for pounds, the number sign.
_CURRENCIES = {"\u00a2": "cents", "\u00a3": "#", "\u0080": "$", "\u00a4": "$", "\u20a0": "$", "\u20ac": "$"}
_BRACKETS = {"{": "-LCB-", "}": "-RCB-", "[": "-LSB-", "]": "-RSB-", "(": "-LRB-", ")": "-RRB-"}


def _same(text: str) -> str:
    return text


def _nothing(text: str) -> None:
    return None


def _always(token: str) -> Callable[[str], str]:
    return lambda text: token


def _without_last(count: int) -> Callable[[str], str]:
    return lambda text: text[:-count]


def _without_soft_hyphens(text: str) -> str:
    return text.replace("\u00ad", "") or "-"


def _with_hard_spaces(text: str) -> str:
    return text.replace(" ", "\u00a0")


def _with_brackets(text: str) -> str:
    return text.replace("(", "-LRB-").replace(")", "-RRB-")


def _phone(text: str) -> str:
    return _with_brackets(_with_hard_spaces(text))


def _with_ampersands(text: str) -> str:
    return re.sub("&amp;", "&", text, flags=re.IGNORECASE)


def _opening(text: str) -> str:
    return text.replace("'", "`").replace('"', "``").replace("&quot;", "``").translate(_QUOTES)


def _closing(text: str) -> str:
    return text.replace("&apos;", "'").replace('"', "''").replace("&quot;", "''").translate(_QUOTES)


def _acronym(text: str) -> str:
    """A letter loses its full stop, which ends the sentence; "U.S." keeps it, and the sentence has another."""
    return text[:-1] if len(text) == 2 else text


def _hyphens(text: str) -> str:
    return "--" if len(text) in (3, 4) else text


@dataclass(frozen=True)
class Rule:
    """One kind of token.

    Attributes:
        pattern: what the token looks like.
        context: what must follow it. It counts into the length of the match, and of several ways to part a match the
            one with the longest token is taken.
        token: the token of a text; None for none.
        give_back: how many of the text's last characters are read again.
    """

    pattern: str
    context: str = ""
    token: Callable[[str], str | None] = _same
    give_back: int = 0


# Of rules that match equally far, context included, the first one counts.
RULES = (
    Rule(r"c\+\+|(c|f)#"),
    Rule("cannot|'twas", token=_without_last(3), give_back=3),
    Rule("'tis|gonna|gotta|lemme|gimme|wanna", token=_without_last(2), give_back=2),
    Rule("{SGML}", token=_with_hard_spaces),
    Rule("{SPMDASH}", token=_always("--")),
    Rule("&amp;", token=_always("&")),
    Rule("{SPPUNC}"),
    Rule("{WORD}", "{REDAUX}", _without_soft_hyphens),
    Rule("{SWORD}", "{SREDAUX}", _without_soft_hyphens),
    Rule("{WORD}", token=_without_soft_hyphens),
    Rule("{APOWORD}"),
    Rule("y{APOS}", "{LETTERCHAR}"),
    Rule("{FULLURL}|{LIKELYURL}|{EMAIL}|{TWITTER}"),
    Rule("{REDAUX}|{SREDAUX}", "[^A-Za-z]", _closing),
    Rule("{DATE}"),
    Rule(r"[\-+]?{NUM}", token=_without_soft_hyphens),
    Rule("{SUBSUPNUM}"),
    Rule("{FRAC}", token=_with_hard_spaces),
    Rule("{FRAC2}", token=lambda text: _FRACTIONS.get(text, text)),
    Rule("{TBSPEC}", token=_with_ampersands),
    Rule("{THING3}|{DOLSIGN}"),
    Rule("{DOLSIGN2}", token=lambda text: _CURRENCIES.get(text, text)),
    Rule(r"{ACRO}\.", "{SPACENL}+{STARTER}{SPACENL}", _acronym, give_back=1),
    Rule("{ABBREV3}", "{SPACENL}?{DIGIT}"),
    Rule(r"(pt[eyEY]|co)\.", "{SPACE}(ltd|lim)"),
    Rule("{ABBREV1}", "{SENTEND}", give_back=1),  # the full stop ends the sentence as well
    Rule("{ABBREV1}", "{ANY}{ANY}"),
    Rule("{ABBREV1}", give_back=1),
    Rule(r"{ABBREV4}\."),
    Rule("{ABBREV4}", "{SPACE}"),
    Rule("{ACRO}|{APOS}[0-9][0-9]", "{SPACENL}"),
    Rule("{FILENAME}", "{SPACENL}|[.?!,]"),
    Rule(r"{WORD}\.", "{INSENTP}", _without_soft_hyphens),
    Rule("{PHONE}", token=_phone),
    Rule("{DBLQUOT}", "[A-Za-z0-9$]", _opening),
    Rule("{DBLQUOT}", token=_closing),
    Rule("<|&lt;", token=_always("<")),
    Rule(">|&gt;", token=_always(">")),
    Rule("{SMILEY}", "[^A-Za-z0-9]", _with_brackets),
    Rule("{ASIANSMILEY}", token=_with_brackets),
    Rule(r"[{}()\[\]]", token=_BRACKETS.__getitem__),
    Rule("-+", token=_hyphens),
    Rule("{LDOTS}", token=_always("...")),
    Rule(r"@+|#+|_+|\*+|(\\\*){1,3}|{INSENTP}|[?!]+|{SENTMARK}|=|\/"),
    Rule(r"{HTHING}\.", "{INSENTP}", _without_soft_hyphens),
    Rule("{HTHING}", token=_without_soft_hyphens),
    Rule(r"{THING}\.", "{INSENTP}"),
    Rule("{THING}"),
    Rule(r"{THINGA}\.", "{INSENTP}", _with_ampersands),
    Rule("{THINGA}", token=_with_ampersands),
    Rule("'", "[A-Za-z][^ \t\n\r\u00a0]", _opening),
    Rule("{REDAUX}|{QUOTES}|{SREDAUX}", token=_closing),
    Rule("<<|>>|{SYMBOL}"),
    Rule("\0|{SPACE}+|{NEWLINE}|&nbsp;|{ANY}", token=_nothing),  # whatever is left is no token
)

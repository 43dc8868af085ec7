"""Captions that are hard to tokenize, from a seeded grammar, and the Java program's tokens for them.

python tests/metrics/hard_cases.py            # prints how often the tokens differ from Java's, by kind of text
python tests/metrics/hard_cases.py --record   # writes ptb_cases.jsonl anew

Both need java and pycocoevalcap.
"""

import argparse
import json
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

FIXTURE = Path(__file__).with_name("ptb_cases.jsonl")

# Line separators would shift the Java program's lines.
LINE_BREAKS = "\n\r\x0b\x0c\u2028\u2029"

# By kind, and escaped: many are invisible or look like something else.
PIECES: dict[str, list[str]] = json.loads(Path(__file__).with_name("hard_pieces.json").read_text())
_GLUE = [" "] * 12 + [""] * 6 + ["  ", ", ", ". ", ".", "-", "'", '"', "/", "\u00a0", ") ", "("]


def hard_sentences(seed: int, count: int) -> list[str]:
    """Sentences of one to seven pieces, glued with or without space."""
    generator = random.Random(seed)
    kinds = list(PIECES)
    sentences = []
    for _ in range(count):
        parts = []
        for _ in range(generator.choice([1, 2, 2, 3, 3, 4, 5, 7])):
            kind = "word" if generator.random() < 0.3 else generator.choice(kinds)
            piece = generator.choice(PIECES[kind])
            change = generator.random()
            if change < 0.06:
                piece = piece.upper()
            elif change < 0.1:
                piece = piece[: generator.randrange(len(piece)) + 1]
            elif change < 0.12:
                place = generator.randrange(len(piece) + 1)
                piece = piece[:place] + _any_character(generator) + piece[place:]
            parts += [piece, generator.choice(_GLUE)]
        sentences.append("".join(parts))
    return sentences


def captions_with(kind: str, seed: int, count: int) -> list[str]:
    """Captions of plain words with one piece of a kind between them, sometimes in quotes or before a comma."""
    generator = random.Random(seed)
    captions = []
    for _ in range(count):
        words = generator.choices(PIECES["word"], k=generator.randrange(3, 9))
        form = generator.choice(["{}"] * 12 + ["{},", "{}.", "{};", '"{}"', "'{}'", "({})"])
        words.insert(generator.randrange(len(words) + 1), form.format(generator.choice(PIECES[kind])))
        captions.append(" ".join(words) + generator.choice(["", ".", " ."]))
    return captions


def _any_character(generator: random.Random) -> str:
    """One of the Basic Multilingual Plane, no line break and no half of another."""
    while True:
        character = chr(generator.choice([generator.randrange(1, 0x250), generator.randrange(1, 0x10000)]))
        if character not in LINE_BREAKS and not "\ud800" <= character <= "\udfff":
            return character


def lex_with_java(lines: Sequence[str]) -> list[list[str]]:
    """Stanford's tokens of each line, as pycocoevalcap calls for them."""
    from pycocoevalcap.tokenizer import ptbtokenizer

    jar = Path(ptbtokenizer.__file__).with_name(ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR)
    options = ["edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "lines"
        source.write_bytes("\n".join(lines).encode())
        run = subprocess.run(["java", "-cp", jar, *options, source], capture_output=True, check=True, timeout=300)
    found = run.stdout.decode().split("\n")[: len(lines)]
    return [line.split(" ") if line else [] for line in found]


def without_punctuation(tokens: Sequence[str]) -> str:
    """The tokens that pycocoevalcap keeps, separated by spaces."""
    from pycocoevalcap.tokenizer.ptbtokenizer import PUNCTUATIONS

    return " ".join(token for token in tokens if token not in PUNCTUATIONS).rstrip()


def tokenize_with_java(lines: Sequence[str]) -> list[str]:
    """pycocoevalcap's tokens of each line, which has no line breaks."""
    return [without_punctuation(tokens) for tokens in lex_with_java(lines)]


def count_differences(kind: str, seed: int, count: int) -> tuple[int, str]:
    """How many captions with a kind of text have other tokens than Java's, and one of them."""
    from vlm_caption.metrics import tokenize

    captions = captions_with(kind, seed, count)
    differ = [
        caption
        for caption, ours, theirs in zip(captions, tokenize(captions), tokenize_with_java(captions), strict=True)
        if ours != theirs
    ]
    return len(differ), min(differ, key=len, default="")


def record() -> None:
    """Writes the fixture: text, Java's tokens, and under "ours" what `tokenize` gives where that differs."""
    from vlm_caption.metrics import tokenize

    sentences = hard_sentences(seed=2014, count=400)
    with FIXTURE.open("w", encoding="utf-8") as file:
        for text, tokens, ours in zip(sentences, lex_with_java(sentences), tokenize(sentences), strict=True):
            case = {"text": text, "tokens": tokens}
            if ours != without_punctuation(tokens):
                case["ours"] = ours
            file.write(json.dumps(case) + "\n")


def main() -> None:
    """Prints how often tokens differ, or writes the fixture."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--record", action="store_true")
    parser.add_argument("--captions", type=int, default=2000, help="of each kind")
    arguments = parser.parse_args()
    if arguments.record:
        record()
        return
    for kind in PIECES:
        count, example = count_differences(kind, 0, arguments.captions)
        print(f"{kind:13s} {100 * count / arguments.captions:5.1f} %   {example!a}")


if __name__ == "__main__":
    main()

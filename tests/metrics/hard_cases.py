"""Sentences that are hard to tokenize, from a seeded grammar, and the oracle's tokens for them.

python tests/metrics/hard_cases.py    # writes ptb_cases.jsonl anew; needs java and pycocoevalcap
"""

import json
import random
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

FIXTURE = Path(__file__).with_name("ptb_cases.jsonl")

# Line separators would shift the oracle's lines.
LINE_BREAKS = "\n\r\x0b\x0c\u2028\u2029"

# By kind, and escaped: many are invisible or look like something else.
_PIECES: dict[str, list[str]] = json.loads(Path(__file__).with_name("hard_pieces.json").read_text())
_GLUE = [" "] * 12 + [""] * 6 + ["  ", ", ", ". ", ".", "-", "'", '"', "/", "\u00a0", ") ", "("]


def hard_sentences(seed: int, count: int) -> list[str]:
    """Sentences of one to seven pieces, glued with or without space."""
    generator = random.Random(seed)
    kinds = list(_PIECES)
    sentences = []
    for _ in range(count):
        parts = []
        for _ in range(generator.choice([1, 2, 2, 3, 3, 4, 5, 7])):
            kind = "word" if generator.random() < 0.3 else generator.choice(kinds)
            piece = generator.choice(_PIECES[kind])
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


def main() -> None:
    """Writes the fixture."""
    sentences = hard_sentences(seed=2014, count=400)
    with FIXTURE.open("w", encoding="utf-8") as file:
        for sentence, tokens in zip(sentences, lex_with_java(sentences), strict=True):
            file.write(json.dumps({"text": sentence, "tokens": tokens}) + "\n")


if __name__ == "__main__":
    main()

"""How much faster captions are scored without Java.

Baseline, in the same run: pycocoevalcap with its own tokenizer, which is a Java program. Both sides tokenize captions
and references and compute BLEU-1..4, ROUGE-L and CIDEr with pycocoevalcap's scorers, and must get the same values.
Texts come from a seeded grammar. The sides take turns; prints medians over the rounds of seconds and of ratios.

    python benchmarks/metrics.py [--images 5000] [--references 5] [--rounds 5]
"""

import argparse
import contextlib
import os
import random
import time
from collections.abc import Callable, Sequence

import numpy as np
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from vlm_caption.metrics import score, tokenize

WHO = ["man", "woman", "child", "girl", "dog", "cat", "horse", "tennis player", "surfer", "couple of tourists"]
HOW = ["young", "brown", "small", "smiling", "black and white", "well-dressed", "red-haired", "tired", "large", "wet"]
DOES = [
    "rides a bike",
    "isn't looking",
    "runs",
    "jumps over a fence",
    "holds an umbrella",
    "sits",
    "plays with a ball",
]
WHERE = [
    "on the beach",
    "in the snow",
    "near a red bus",
    "at St. Mark's",
    "by the dog's bed",
    "on a street",
    "outside",
]


def write_captions(count: int, generator: random.Random) -> list[str]:
    """Captions of about eleven words."""
    captions = []
    for _ in range(count):
        who, how, does, where = (generator.choice(words) for words in (WHO, HOW, DOES, WHERE))
        tail = generator.choice(["", "", f", while a {generator.choice(WHO)} {generator.choice(DOES)}"])
        captions.append(f"{generator.choice(['A', 'The', 'One'])} {how} {who} {does} {where}{tail}.")
    return captions


def tokenize_with_java(captions: Sequence[str], references: Sequence[Sequence[str]]) -> tuple[dict, dict]:
    """pycocoevalcap's tokens of references and captions, by image."""
    tokenizer = PTBTokenizer()
    return (
        tokenizer.tokenize({image: [{"caption": text} for text in texts] for image, texts in enumerate(references)}),
        tokenizer.tokenize({image: [{"caption": text}] for image, text in enumerate(captions)}),
    )


def score_with_java(captions: Sequence[str], references: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-1..4, ROUGE-L and CIDEr as `COCOEvalCap` computes them."""
    tokens = tokenize_with_java(captions, references)
    bleu, _ = Bleu(4).compute_score(*tokens, verbose=0)
    return [*bleu, Rouge().compute_score(*tokens)[0], Cider().compute_score(*tokens)[0]]


def time_in_turn(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, np.ndarray]:
    """Seconds of each side in each round; the sides take turns, so that whatever else runs slows all of them."""
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(rounds):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            seconds[name].append(time.perf_counter() - start)
    return {name: np.array(values) for name, values in seconds.items()}


def main() -> None:
    """Measures both sides and prints their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--references", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()

    generator = random.Random(0)
    captions = write_captions(arguments.images, generator)
    references = [write_captions(arguments.references, generator) for _ in captions]
    metrics = ("bleu", "rouge_l", "cider")
    with quiet_java():
        ours = list(score(captions, references, metrics).corpus.values())
        assert np.allclose(ours, score_with_java(captions, references)), "the two sides disagree"
        texts = [text for image in references for text in image]
        seconds = time_in_turn(
            {
                "tokens, Java": lambda: tokenize_with_java(captions, references),
                "tokens, here": lambda: (tokenize(captions), tokenize(texts)),
                "scores, Java": lambda: score_with_java(captions, references),
                "scores, here": lambda: score(captions, references, metrics),
            },
            arguments.rounds,
        )
    for name, values in seconds.items():
        print(f"{name}  {np.median(values):6.2f} s")
    for what in ("tokens", "scores"):
        ratios = seconds[f"{what}, Java"] / seconds[f"{what}, here"]
        print(f"ratio, {what} {np.median(ratios):6.2f} ({ratios.min():.2f} to {ratios.max():.2f})")


@contextlib.contextmanager
def quiet_java():
    """Java counts tokens on the terminal: not here."""
    terminal, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(terminal, 2)
        os.close(terminal)
        os.close(nowhere)


if __name__ == "__main__":
    main()

"""Handwritten digits in words, from 64 numbers each and without a vision tower: `python examples/digits.py`.

Vectors of any other encoder (of molecules, spectra, graphs) go the same way: a file of vectors, a table of captions,
a config. Here the first two are made of scikit-learn's digits and their labels. The last 397 digits are held out.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from vlm_caption import Captioner
from vlm_caption.config.command_line import add_arguments, parse_arguments
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.console import ArgumentParser, quiet_transformers, setup_logging
from vlm_caption.data import load_captions, open_vectors
from vlm_caption.training.train import train

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "digits.yaml"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def write_tables(vectors: Path, captions: Path) -> None:
    """Writes the digits, float32 [1797, 64], and for each row two captions and its split."""
    digits = load_digits()
    for folder in (vectors.parent, captions.parent):
        folder.mkdir(parents=True, exist_ok=True)
    np.save(vectors, digits.data.astype(np.float32))
    with captions.open("w") as file:
        for row, label in enumerate(digits.target):
            split = "train" if row < 1200 else "dev" if row < 1400 else "test"
            texts = [f"the digit {WORDS[label]}", f"a handwritten {label}"]
            file.write(json.dumps({"caption": texts, "split": split}) + "\n")


def caption_held_out(checkpoint: str, vectors: Path, captions: Path) -> float:
    """The share of held-out digits whose caption is one of their two."""
    held_out = load_captions(captions, "test", features=vectors)
    with quiet_transformers():
        captioner = Captioner.from_pretrained(checkpoint)
        found = list(captioner.caption_vectors(open_vectors(vectors).select(held_out["image"]), batch_size=64))
    pairs = list(zip(found, held_out, strict=True))
    for caption, row in pairs[:5]:
        print(f"digit {caption.image}: {caption.text}  [right: {' / '.join(row['captions'])}]")
    right = sum(caption.text in row["captions"] for caption, row in pairs)
    share = right / len(pairs)
    print(f"{right} of {len(pairs)} held-out digits have a right caption: {100 * share:.1f} %; by chance 10 %")
    return share


def main(argv: list[str] | None = None) -> int:
    """Returns the exit code. The options are train.py's."""
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    _, overrides = parse_arguments(parser, argv)
    config = RunConfig.load(CONFIG, overrides)
    setup_logging()
    vectors, captions = Path(str(config.data.features)), Path(config.data.path)
    write_tables(vectors, captions)
    train(config)
    caption_held_out(config.training.output_dir, vectors, captions)
    return 0


if __name__ == "__main__":
    sys.exit(main())

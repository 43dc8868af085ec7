"""Handwritten digits described in words, from their 64 numbers and without a vision tower: `python examples/digits.py`.

Any other encoder's vectors (of molecules, spectra, graphs) go the same way: a file of vectors, a table of captions and
a config. Here both are made of scikit-learn's digits and their labels. The last 397 digits are held out.
"""

import json
import sys
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits

from vlm_caption import Captioner
from vlm_caption.console import quiet_transformers, setup_logging
from vlm_caption.data import load_captions, open_vectors
from vlm_caption.run_config import RunConfig, add_arguments, parse_arguments
from vlm_caption.training import train
from vlm_caption.console import ArgumentParser

CONFIG = Path(__file__).resolve().parents[1] / "configs" / "digits.yaml"
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")


def captions_of(label: int) -> list[str]:
    return [f"the digit {WORDS[label]}", f"a handwritten {label}"]


def write_tables(vectors: Path, captions: Path) -> None:
    digits = load_digits()
    for folder in {vectors.parent, captions.parent}:
        folder.mkdir(parents=True, exist_ok=True)
    np.save(vectors, digits.data.astype(np.float32))  # [1797, 64]
    with captions.open("w") as file:
        for row, label in enumerate(digits.target):
            split = "train" if row < 1200 else "dev" if row < 1400 else "test"
            file.write(json.dumps({"caption": captions_of(label), "split": split}) + "\n")


def main(argv: list[str] | None = None) -> int:
    parser = ArgumentParser(description=__doc__, allow_abbrev=False)
    add_arguments(parser)
    _, overrides = parse_arguments(parser, argv)
    config = RunConfig.load(CONFIG, overrides)
    setup_logging()
    vectors, captions = Path(config.data.features or ""), Path(config.data.path)
    write_tables(vectors, captions)
    train(config)

    with quiet_transformers():
        captioner = Captioner.from_pretrained(config.training.output_dir, device="cpu")
    held_out = load_captions(captions, "test", features=vectors)
    found = list(captioner.caption_vectors(open_vectors(vectors).select(held_out["image"]), batch_size=64))
    right = sum(caption.text in row["captions"] for caption, row in zip(found, held_out, strict=True))
    for caption, row in list(zip(found, held_out, strict=True))[:5]:
        print(f"row {caption.image}: {caption.text}  [reference: {row['captions'][0]}]")
    print(
        f"{right} of {len(found)} held-out digits are captioned right: {100 * right / len(found):.1f} %; by chance 10 %"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())

"""What confidences cost: captioning with and without them, in turns.

Baseline, in the same run: the same captioner without confidences. Their numbers are made up, which takes the same
time. Seconds are processor seconds, so other programs on the machine matter less.

    python benchmarks/confidence.py [--images 8] [--repeats 3] [--num-beams 3]
"""

import argparse
import time
from pathlib import Path

import numpy as np

from vlm_caption.captioning.captioner import Captioner
from vlm_caption.captioning.confidence import SIGNALS, Confidence, KnownPictures, Regression, Regressions
from vlm_caption.captioning.signals import pooled_size

REPOSITORY = Path(__file__).parents[1]


def main() -> None:
    """Measures both sides."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("images", 8), ("repeats", 3), ("num-beams", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    captioner = Captioner.from_pretrained(REPOSITORY / "checkpoints" / "embedded")
    size, numbers = pooled_size(captioner.model.config), (1.0,) * len(SIGNALS)
    regression = Regression(numbers, numbers, numbers, 0.0)
    pictures = KnownPictures(np.zeros(size), np.ones(size))
    confidence = Confidence(Regressions(regression, regression, 1.0), pictures, weights="")
    photos = sorted((REPOSITORY / "examples").glob("*.jpg"))
    batch = [photos[number % len(photos)] for number in range(arguments.images)]
    seconds: dict[str, list[float]] = {"without": [], "with": []}
    for repeat in range(arguments.repeats + 1):  # the first does not count
        for side, used in (("without", None), ("with", confidence)):
            captioner.confidence = used
            start = time.process_time()
            captioner.caption(batch, num_beams=arguments.num_beams)
            if repeat:
                seconds[side].append(time.process_time() - start)
    without, with_them = (min(values) for values in seconds.values())
    print(f"without {without:.1f} s, with {with_them:.1f} s: {with_them / without:.2f} of the time")


if __name__ == "__main__":
    main()

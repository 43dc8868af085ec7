"""How much faster training is with an image's captions packed behind one copy of its tokens.

Baseline, in the same run: one caption a row, the image's tokens repeated for each (ClipCap's way). Both sides see the
same captions, the same frozen language model in the same precision, and features instead of pixels. Prints captions a
second for both, and their ratio.

    python benchmarks/packing.py [--steps 5]
"""

import argparse
import time

import torch

from vlm_caption import compose
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.towers.precision import hold_frozen

CAPTIONS = [
    "A child in a pink dress is climbing up a set of stairs in an entry way.",
    "A girl going into a wooden building.",
    "A little girl climbing into a wooden playhouse.",
    "A little girl climbing the stairs to her playhouse.",
    "A little girl in a pink dress going into a wooden cabin.",
]


def captions_per_second(model, collator: CaptionCollator, rows: list[dict], steps: int) -> float:
    """Training throughput over `steps` optimiser-less steps, after one that does not count."""
    batch = collator(rows)
    times = []
    for _ in range(steps + 1):
        start = time.perf_counter()
        model(**batch).loss.backward()
        model.zero_grad()
        times.append(time.perf_counter() - start)
    return sum(len(row["captions"]) for row in rows) / min(times[1:])


def main() -> None:
    """Measures both sides and prints their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--images", type=int, default=8)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model, processor = compose(
        "wheel:dinov2-small", "wheel:smollm2-135m-instruct", image_tokens="patches", image_grid=4, pooled_in_front=True
    )
    hold_frozen(model, "auto")
    features = torch.randn(arguments.images, 17, model.config.vision_feature_size)
    collator = CaptionCollator(
        processor, lambda rows: {"image_features": features[[row["index"] for row in rows]]}, prompt=""
    )
    packed = [{"index": index, "captions": CAPTIONS} for index in range(arguments.images)]
    single = [{"index": index, "captions": [text]} for index in range(arguments.images) for text in CAPTIONS]
    baseline = captions_per_second(model, collator, single, arguments.steps)
    ours = captions_per_second(model, collator, packed, arguments.steps)
    print(f"one caption a row      {baseline:7.1f} captions/s")
    print(f"packed behind an image {ours:7.1f} captions/s")
    print(f"ratio                  {ours / baseline:7.2f}")


if __name__ == "__main__":
    main()

"""How much faster a checkpoint is evaluated with losses in one pass and captions in larger batches.

Baseline, in the same run: captions of 8 images at a time, then a pass for the loss and one for the loss with other
images, 8 images at a time. Both sides start from the same cached features, take turns, and must get the same losses;
prints medians over the rounds of seconds and of ratios, and how many captions are the same.

    nice python benchmarks/evaluation.py [--checkpoint checkpoints/embedded] [--images 50] [--rounds 3]
"""

import argparse
import statistics
import time
from collections.abc import Sequence

import torch
from datasets import Dataset

from vlm_caption import Captioner
from vlm_caption.captioning.generation import GenerationSettings, caption_batch
from vlm_caption.captioning.nll import caption_nll, paired_nll
from vlm_caption.data import load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.evaluation.captions import BATCH_SIZE
from vlm_caption.features.inputs import ImageInputs, with_index
from vlm_caption.towers.precision import hold_frozen

_OLD_BATCH_SIZE = 8


@torch.inference_mode()
def write_captions(captioner: Captioner, dataset: Dataset, collator: CaptionCollator, batch_size: int) -> list[str]:
    """Returns the captions of all rows, `batch_size` at a time."""
    rows = list(dataset)
    batches = (rows[start : start + batch_size] for start in range(0, len(rows), batch_size))
    settings = GenerationSettings()
    return [text for batch in batches for text in caption_batch(captioner.model, collator, batch, settings)]


def losses_in_two_passes(captioner: Captioner, dataset: Dataset, collator: CaptionCollator) -> tuple[float, ...]:
    """Returns the losses with own images and with other images, each of a pass of its own."""
    return tuple(
        caption_nll(captioner.model, dataset, collator, _OLD_BATCH_SIZE, shuffle_images=shuffle)
        for shuffle in (False, True)
    )


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/embedded")
    parser.add_argument("--data", default="../shared/flickr8k")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args(argv)
    captioner = Captioner.from_pretrained(arguments.checkpoint)
    hold_frozen(captioner.model, "auto")
    dataset = with_index(load_captions(arguments.data, "dev", limit=arguments.images))
    images = ImageInputs(captioner.model, captioner.processor, dataset["image"], cache=True)
    collator = CaptionCollator(captioner.processor, images, positions=captioner.model.config.text_positions)

    parts = {
        "captions": (
            lambda: write_captions(captioner, dataset, collator, _OLD_BATCH_SIZE),
            lambda: write_captions(captioner, dataset, collator, BATCH_SIZE),
        ),
        "losses": (
            lambda: losses_in_two_passes(captioner, dataset, collator),
            lambda: paired_nll(captioner.model, dataset, collator),
        ),
    }
    for name, sides in parts.items():
        seconds: list[list[float]] = [[], []]
        results: list = [None, None]
        for _ in range(arguments.rounds):
            for side, compute in enumerate(sides):
                start = time.perf_counter()
                results[side] = compute()
                seconds[side].append(time.perf_counter() - start)
        before, after = map(statistics.median, seconds)
        ratio = statistics.median(new / old for old, new in zip(*seconds, strict=True))
        print(f"{name}: {before:.1f} s before, {after:.1f} s after, {ratio:.2f} of the time")
        if name == "losses":
            assert all(abs(old - new) < 1e-3 * old for old, new in zip(*results, strict=True)), results
        else:
            same = sum(old == new for old, new in zip(*results, strict=True))
            print(f"{same} of {len(dataset)} captions are the same")


if __name__ == "__main__":
    main()

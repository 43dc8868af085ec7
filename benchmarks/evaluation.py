"""How much faster the losses of an evaluation are computed in one pass than in two.

Baseline, in the same run: a pass for the loss and one for the loss with other images, 8 images at a time. With
`--before bf16`, its towers are held in bfloat16, as `precision: auto` once did on processors that it makes slower.
Both sides start from the same cached features, take turns, and must get the same losses; prints medians over the
rounds of seconds and of ratios, on the clock and on the processor. The latter depends less on what else the machine
does.

    OMP_WAIT_POLICY=passive nice python benchmarks/evaluation.py [--images 50] [--rounds 3] [--before bf16]
"""

import argparse
import statistics
import time
from collections.abc import Callable, Sequence

from vlm_caption import Captioner
from vlm_caption.captioning.nll import caption_nll, paired_nll
from vlm_caption.data import load_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import ImageInputs, with_index
from vlm_caption.towers.precision import hold_frozen

_CLOCKS: dict[str, Callable[[], float]] = {"clock": time.perf_counter, "processor": time.process_time}


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="checkpoints/embedded")
    parser.add_argument("--data", default="../shared/flickr8k")
    parser.add_argument("--images", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", choices=("auto", "fp32", "bf16"), default="auto", help="the baseline's precision")
    arguments = parser.parse_args(argv)
    captioner, baseline = (Captioner.from_pretrained(arguments.checkpoint) for _ in range(2))
    model = captioner.model
    hold_frozen(model, "auto")
    hold_frozen(baseline.model, arguments.before)
    dataset = with_index(load_captions(arguments.data, "dev", limit=arguments.images))
    images = ImageInputs(model, captioner.processor, dataset["image"], cache=True)
    collator = CaptionCollator(captioner.processor, images, positions=model.config.text_positions)
    sides = (
        lambda: [
            caption_nll(baseline.model, dataset, collator, 8, shuffle_images=shuffle) for shuffle in (False, True)
        ],
        lambda: paired_nll(model, dataset, collator),
    )
    seconds: dict[str, list[list[float]]] = {name: [[], []] for name in _CLOCKS}
    results: list = [None, None]
    for _ in range(arguments.rounds):
        for side, compute in enumerate(sides):
            starts = {name: clock() for name, clock in _CLOCKS.items()}
            results[side] = compute()
            for name, clock in _CLOCKS.items():
                seconds[name][side].append(clock() - starts[name])
    tolerance = 1e-3 if arguments.before == "auto" else 1e-2  # bfloat16 has 8 bits of precision
    assert all(abs(old - new) < tolerance * old for old, new in zip(*results, strict=True)), results
    for name, (before, after) in seconds.items():
        ratio = statistics.median(new / old for old, new in zip(before, after, strict=True))
        print(
            f"{name}: {statistics.median(before):.1f} s before, {statistics.median(after):.1f} s after, "
            f"{ratio:.2f} of the time"
        )


if __name__ == "__main__":
    main()

"""How much faster the captions of a step of `objective: cider` are sampled than by `generate` of transformers.

Baseline, in the same run: `generate` with `num_return_sequences`, which encodes the image once for each caption,
goes on with all captions until the last one has ended, and draws by `torch.multinomial`. Both sides use the shipped
captioner in the same precision, the same features, and no limits to what may be drawn. Also prints the parts of a
whole step, and the share of the reward. Seconds are processor seconds, so other programs on the machine matter less.

    python benchmarks/sampling.py [--images 10] [--captions 5] [--repeats 3]
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vlm_caption import CaptionerForConditionalGeneration, CaptionerProcessor, open_image
from vlm_caption.captioning.sampling import sample_captions
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.model.loss import target_nll
from vlm_caption.towers.precision import choose_kernels, hold_frozen
from vlm_caption.training.reward import CaptionReward, advantages

REPOSITORY = Path(__file__).parents[1]
REFERENCES = [
    "A child in a pink dress is climbing up a set of stairs in an entry way.",
    "A girl going into a wooden building.",
    "A little girl climbing into a wooden playhouse.",
    "A little girl climbing the stairs to her playhouse.",
    "A little girl in a pink dress going into a wooden cabin.",
]


def timed(call: Callable[[], Any]) -> tuple[float, Any]:
    """Returns the processor seconds of a call, and what it returned."""
    start = time.process_time()
    result = call()
    return time.process_time() - start, result


def load(images: int) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor, torch.Tensor]:
    """Returns the shipped captioner as training holds it, and features of the example photos."""
    checkpoint = REPOSITORY / "checkpoints" / "embedded"
    model = CaptionerForConditionalGeneration.from_pretrained(checkpoint)
    processor = CaptionerProcessor.from_pretrained(checkpoint)
    photos = [open_image(photo) for photo in sorted((REPOSITORY / "examples").glob("*.jpg"))]
    pixels = processor.image_processor(photos, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        features = model.core.encode_images(pixels).pooler_output
    hold_frozen(model, "auto")
    choose_kernels(model, compiled=False)
    return model.eval(), processor, features[torch.arange(images) % len(features)]


def main() -> None:
    """Measures both sides and the parts of a step."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("images", 10), ("captions", 5), ("repeats", 3)):
        parser.add_argument(f"--{name}", type=int, default=default)
    arguments = parser.parse_args()
    count = arguments.captions
    model, processor, features = load(arguments.images)
    collator = CaptionCollator(processor, lambda rows: {})
    prompts = torch.tensor([collator.prefix] * len(features))
    reward = CaptionReward([REFERENCES] * 6000)

    def generate() -> torch.Tensor:
        settings: dict[str, Any] = {"do_sample": True, "num_beams": 1, "top_k": 0, "top_p": 1.0}
        return model.generate(prompts, image_features=features, num_return_sequences=count, **settings)

    def learn() -> None:
        rows = [samples.token_ids[start : start + count] for start in range(0, len(samples.token_ids), count)]
        batch = collator.pack([[([], ids) for ids in row] for row in rows])
        labels = batch.pop("labels")
        del batch["shift_labels"]
        logits = model(**batch, image_features=features, use_cache=False).logits
        target_nll(logits, labels).mean().backward()

    def rate() -> None:
        texts = processor.batch_decode(samples.token_ids, skip_special_tokens=True)
        advantages(reward([0] * len(features), texts, samples.ended))

    parts: dict[str, list[float]] = {"generate": [], "sample": [], "reward": [], "learn": []}
    for repeat in range(arguments.repeats + 1):  # the first does not count
        generator = torch.Generator().manual_seed(repeat)
        seconds, samples = timed(
            lambda: sample_captions(model, collator.prefix, {"image_features": features}, count, 1.0, generator)  # noqa: B023
        )
        found = {"sample": seconds, "generate": timed(generate)[0], "reward": timed(rate)[0], "learn": timed(learn)[0]}
        for name, value in found.items() if repeat else ():
            parts[name].append(value)
    best = {name: min(values) for name, values in parts.items()}
    step = best["sample"] + best["reward"] + best["learn"]
    captions = len(features) * count
    print(f"generate                     {best['generate']:6.2f} s for {captions} captions")
    print(
        f"sample_captions              {best['sample']:6.2f} s, {best['generate'] / best['sample']:.2f} times as fast"
    )
    print(f"forward and backward         {best['learn']:6.2f} s")
    print(f"reward                       {best['reward']:6.3f} s, {best['reward'] / step:.1%} of the step")
    print(f"the step                     {step:6.2f} s, {captions / step:.1f} captions a processor second")


if __name__ == "__main__":
    main()

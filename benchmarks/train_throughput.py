"""How fast training is, beside other loops on the same machine, with the same language model and the same captions.

    python benchmarks/train_throughput.py [--language smollm2] [--repeats 5] [--json]

Each loop (`training_loops.py`) has a process of its own. They take turns, so a busy machine slows all of them alike,
and a number is the median of its repeats. Beside captions a second it measures the share of the machine's own matmul
peak that training reaches, each process's peak memory, and the speed of the feature cache beside the bare tower's.
Language models have random weights: speed does not depend on them.

The precision is the one that training chooses on the machine: bfloat16 where that is multiplied faster, else
float32. In float32, loops that want bfloat16 are left out.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import IO, cast

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from training_loops import (
    IMAGES_A_BATCH,
    LOOPS,
    build_captioner,
    build_collator,
    caption_texts,
)

from vlm_caption.data.sampler import LengthBatchSampler
from vlm_caption.features.cache import image_features
from vlm_caption.towers.precision import hold_frozen, use_bf16

# Steps that make one repeat: seconds each.
STEPS = {"ours": 4, "unpacked_16_tokens": 2, "clipcap_bf16": 1, "clipcap_fp32": 1, "tutorial": 3}
TARGETS = {"clipcap_fp32": 6.0, "clipcap_bf16": 3.0, "unpacked_16_tokens": 1.6, "tutorial": 40.0}
NEED_BF16 = {"clipcap_bf16"}
PICTURES = 64


def matmul_peak(language: str) -> Callable[[], float]:
    """Multiplies square matrices in the machine's precision, float operations a call: the fastest that it does."""
    size = 2048
    left, right = torch.randn(2, size, size).to(torch.bfloat16 if use_bf16("auto") else torch.float32)

    def step() -> float:
        left @ right
        return 2 * size**3

    return step


def _cache_parts(language: str):
    model, processor = build_captioner(language)
    hold_frozen(model, "auto")
    return model.eval(), processor


def cache(language: str) -> Callable[[], int]:
    """Fills the feature cache from pictures of Flickr8k's size, JPEG files; images a call."""
    model, processor = _cache_parts(language)
    folder = tempfile.TemporaryDirectory()
    draw = np.random.default_rng(0)
    paths = []
    for number in range(PICTURES):
        small = Image.fromarray(draw.integers(0, 256, (12, 16, 3), dtype=np.uint8))  # as smooth as photos are
        paths.append(str(Path(folder.name, f"{number}.jpg")))
        small.resize((500, 375), Image.Resampling.BICUBIC).save(paths[-1], quality=90)

    def step() -> int:
        with tempfile.TemporaryDirectory(dir=folder.name) as directory:
            image_features(model, processor, paths, Path(directory))
        return PICTURES

    return step


def tower(language: str) -> Callable[[], int]:
    """The bare vision tower on ready pixels; images a call."""
    model, _ = _cache_parts(language)
    pixels = torch.randn(PICTURES // 2, 3, 224, 224)

    @torch.inference_mode()
    def step() -> int:
        for _ in range(2):
            model.core.encode_images(pixels)
        return PICTURES

    return step


MEASURES = {**LOOPS, "matmul_peak": matmul_peak, "cache": cache, "tower": tower}


@dataclass(frozen=True)
class Work:
    """What this package's training does.

    Attributes:
        flops: matrix float operations for a caption, forward and backward.
        padding: the share of positions that are padding.
        shuffled_padding: the same where batches are merely shuffled.
    """

    flops: float
    padding: float
    shuffled_padding: float


def count_work(language: str) -> Work:
    """Counts what is done in an epoch, the operations on a few of its batches."""
    model, processor = build_captioner(language)
    collator = build_collator(processor)
    rows: list[dict] = [{"index": index, "captions": captions} for index, captions in enumerate(caption_texts())]
    lengths = collator.count_tokens(rows)
    sampler = LengthBatchSampler(len(rows), IMAGES_A_BATCH, 1, lambda window: [lengths[row] for row in window])
    batches = list(sampler)
    with FlopCounterMode(display=False) as counter:
        for batch in batches[:4]:
            model(**collator([rows[row] for row in batch])).loss.backward()
    captions = sum(len(rows[row]["captions"]) for batch in batches[:4] for row in batch)

    def padding(batches: list[list[int]]) -> float:
        widths = [len(collator.prefix) + np.array([lengths[row] for row in batch]) for batch in batches]
        return 1 - sum(width.sum() for width in widths) / sum(len(width) * width.max() for width in widths)

    in_order = [list(range(at, at + IMAGES_A_BATCH)) for at in range(0, len(rows), IMAGES_A_BATCH)]
    return Work(counter.get_total_flops() / captions, padding(batches), padding(in_order))


def serve(name: str, language: str) -> None:
    """A measure's own process: repeats it whenever a number of calls comes on stdin, and answers with a JSON line."""
    step = MEASURES[name](language)
    step()
    print(json.dumps({"ready": name}), flush=True)
    for line in sys.stdin:
        start = time.perf_counter()
        amount = sum(step() for _ in range(int(line)))
        seconds = time.perf_counter() - start
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (1024 if sys.platform != "darwin" else 1024**2)
        print(json.dumps({"rate": amount / seconds, "rss_mb": peak}), flush=True)


class Measure:
    """One measure in its own process."""

    def __init__(self, name: str, language: str):
        command = [sys.executable, __file__, "--serve", name, "--language", language]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.input, self.output = cast(IO[str], self.process.stdin), cast(IO[str], self.process.stdout)
        self.rates: list[float] = []
        self.rss_mb = 0.0
        self._answer()

    def _answer(self) -> dict:
        for line in self.output:
            if line.startswith("{"):
                return json.loads(line)
        raise RuntimeError(f"{self.process.args} ended")

    def repeat(self, calls: int) -> None:
        """Measures once more."""
        self.input.write(f"{calls}\n")
        self.input.flush()
        answer = self._answer()
        self.rates.append(answer["rate"])
        self.rss_mb = answer["rss_mb"]

    @property
    def rate(self) -> float:
        """Median of what was measured, a second."""
        return statistics.median(self.rates)


def main() -> None:
    """Measures all and prints the table, or one JSON object at the end."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--language", choices=["gpt2", "smollm2"], default="gpt2", help="whose dimensions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true", help="end with one JSON object")
    parser.add_argument("--serve", choices=MEASURES, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve, arguments.language)
        return

    threads = torch.get_num_threads()
    precision = "bfloat16" if use_bf16("auto") else "float32"
    print(f"{arguments.language}, {precision}, {threads} threads a process", file=sys.stderr)
    left_out = set() if precision == "bfloat16" else NEED_BF16
    if left_out:
        print(f"left out, for bfloat16 is no faster on this machine: {', '.join(left_out)}", file=sys.stderr)
    measures = {}
    for name in (name for name in MEASURES if name not in left_out):
        print(f"starting {name}", file=sys.stderr, flush=True)
        measures[name] = Measure(name, arguments.language)
    for number in range(arguments.repeats):
        for name, measure in measures.items():
            measure.repeat(STEPS.get(name, 20 if name == "matmul_peak" else 1))
        rates = "  ".join(f"{name} {measure.rates[-1]:.4g}" for name, measure in measures.items())
        print(f"repeat {number + 1}: {rates}", file=sys.stderr, flush=True)
    for measure in measures.values():
        measure.input.close()
        measure.process.wait()

    ours = measures["ours"]
    work = count_work(arguments.language)
    # Of each repeat, for the machine may be busier in one than in another.
    ratios = {
        name: statistics.median(a / b for a, b in zip(ours.rates, measures[name].rates, strict=True))
        for name in TARGETS.keys() & measures.keys()
    }
    peaks = zip(ours.rates, measures["matmul_peak"].rates, strict=True)
    caches = zip(measures["cache"].rates, measures["tower"].rates, strict=True)
    result = {
        "precision": precision,
        "ratios": ratios,
        "peak_share": statistics.median(rate * work.flops / peak for rate, peak in peaks),
        "rss_mb": {"ours": ours.rss_mb, "clipcap": measures["clipcap_fp32"].rss_mb},
        "cache_images_per_s_ratio": statistics.median(cache / bare for cache, bare in caches),
    }
    for name in (name for name in LOOPS if name in measures):
        ratio = f"{ratios[name]:6.2f} x (target {TARGETS[name]:g})" if name in ratios else ""
        print(f"{name:20} {measures[name].rate:9.2f} captions/s  {measures[name].rss_mb:6.0f} MB  {ratio}")
    peak = measures["matmul_peak"].rate
    print(f"padding {work.padding:.1%}, in batches that are merely shuffled {work.shuffled_padding:.1%}")
    share = result["peak_share"]
    print(f"{work.flops / 1e9:.2f} GFLOP a caption; matmul peak {peak / 1e9:.0f} GFLOP/s; share {share:.2f}")
    print(f"cache {measures['cache'].rate:.1f} images/s, bare tower {measures['tower'].rate:.1f}")
    if arguments.json:
        print(json.dumps(result))


if __name__ == "__main__":
    main()

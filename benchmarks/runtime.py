"""Exported captioners beside the checkpoint they came from: `python benchmarks/runtime.py exported exported-int8`.

It prints how many captions of dev photos are the same as the checkpoint's, how far scores differ, CIDEr, and the
difference in CIDEr with a 95 % interval; then pictures a second at several batch sizes, the time from the start of a
process to its first caption beside `import torch`, the most memory, and the size on disk. Runs alternate and medians
count. Seconds are of the processor, beside those of the clock: other work on the machine adds only to the latter.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vlm_caption import Captioner, load_captions, runtime
from vlm_caption.metrics import compare, score

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTO = REPOSITORY / "examples" / "officer.jpg"
THREADS = 2

# Run in a process of its own.
FIRST_CAPTION = "from vlm_caption.runtime import Captioner; Captioner.from_pretrained({0!r}).caption({1!r})"


def agreement(captioners: dict[str, Any], photos: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    """Prints a line for each exported captioner and number of beams; the first captioner is the checkpoint."""
    (baseline, torch_captioner), *exported = captioners.items()
    for beams in (1, 3):
        expected = torch_captioner.caption(photos, num_beams=beams)
        scores = score([caption.text for caption in expected], references, ["cider"])
        print(f"{baseline}, {beams} beams: CIDEr {100 * scores.corpus['cider']:.1f}", flush=True)
        for name, captioner in exported:
            captions = captioner.caption(photos, num_beams=beams)
            same = [own.text == theirs.text for own, theirs in zip(captions, expected, strict=True)]
            gaps = [
                abs(own.score - theirs.score)
                for own, theirs, is_same in zip(captions, expected, same, strict=True)
                if is_same
            ]
            own_scores = score([caption.text for caption in captions], references, ["cider"])
            cider = compare(own_scores, scores)["cider"]
            print(
                f"{name}, {beams} beams: {sum(same)} of {len(same)} captions the same, scores of these within "
                f"{max(gaps, default=0):.1e}; CIDEr {100 * own_scores.corpus['cider']:.1f}, "
                f"{100 * cider.difference:+.1f} ({100 * cider.low:+.1f} to {100 * cider.high:+.1f})",
                flush=True,
            )


def speed(captioners: dict[str, Any], photos: Sequence[str], batch_sizes: Sequence[int], runs: int) -> None:
    """Prints pictures a second of each captioner, and its ratio to the first one's."""
    for beams in (1, 3):
        for batch_size in batch_sizes:
            batch = [photos[index % len(photos)] for index in range(batch_size)]
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in captioners}
            for _ in range(runs):
                for name, captioner in captioners.items():
                    wall, processor = time.perf_counter(), time.process_time()
                    captioner.caption(batch, batch_size=batch_size, num_beams=beams)
                    measured[name].append((time.perf_counter() - wall, time.process_time() - processor))
            medians = {name: np.median(times, axis=0) / batch_size for name, times in measured.items()}
            (first, first_processor), *_ = medians.values()
            for name, (wall, processor) in medians.items():
                print(
                    f"{name:24} batch {batch_size:3}, {beams} beams: {1 / wall:6.2f}/s ({first / wall:.2f} x), "
                    f"{processor:6.3f} s of the processor each ({first_processor / processor:.2f} x)",
                    flush=True,
                )


def start(folders: Sequence[Path], runs: int) -> None:
    """Prints seconds from the start of a process to its first caption, and its peak memory, beside `import torch`."""
    commands = {"import torch": "import torch", "import nothing": "pass"}
    commands |= {str(folder): FIRST_CAPTION.format(str(folder), str(PHOTO)) for folder in folders}
    measured: dict[str, list[tuple[float, float, float]]] = {name: [] for name in commands}
    code = "\nimport json, resource, time\nusage = resource.getrusage(resource.RUSAGE_SELF)\n"
    code += "print(json.dumps([usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1e3]))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    for _ in range(runs):
        for name, command in commands.items():
            begin = time.perf_counter()
            output = subprocess.run(
                [sys.executable, "-c", command + code], env=environment, capture_output=True, text=True, check=True
            ).stdout
            measured[name].append((time.perf_counter() - begin, *json.loads(output.splitlines()[-1])))
    for name, values in measured.items():
        wall, processor, memory = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name}: {wall:.2f} s, {processor:.2f} s of the processor, {memory:.0f} MB at most")


def main() -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, help="what `vlm-caption export` wrote")
    parser.add_argument("--checkpoint", default=str(REPOSITORY / "checkpoints" / "embedded"))
    parser.add_argument("--data", default=str(REPOSITORY.parent / "shared" / "flickr8k"))
    parser.add_argument(
        "--images", type=int, default=1000, help="dev photos to compare captions of (1000); 0 for none"
    )
    parser.add_argument("--batch-sizes", type=int, nargs="*", default=[1, 8, 32])
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement (3)")
    arguments = parser.parse_args()
    import torch

    torch.set_num_threads(THREADS)
    dataset = load_captions(arguments.data, split="dev", limit=max(arguments.images, 32))
    photos = list(dataset["image"])
    captioners: dict[str, Any] = {"checkpoint": Captioner.from_pretrained(arguments.checkpoint, device="cpu")}
    for folder in arguments.exports:
        size = sum(path.stat().st_size for path in folder.iterdir()) / 1e6
        print(f"{folder.name}: {size:.1f} MB on disk")
        captioners[folder.name] = runtime.Captioner.from_pretrained(folder, threads=THREADS)
    if arguments.images:
        count = arguments.images
        agreement(captioners, photos[:count], list(dataset["captions"])[:count])
    if arguments.batch_sizes:
        speed(captioners, photos, arguments.batch_sizes, arguments.runs)
        start(arguments.exports, arguments.runs)
    print(f"This process: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e3:.0f} MB at most")


if __name__ == "__main__":
    main()

"""Exported captioners beside the checkpoint they came from: `python benchmarks/runtime.py exported exported-int8`.

It prints how many captions of dev photos are the same as the checkpoint's, greedy and with 3 beams, how far scores
differ, CIDEr, and the difference in CIDEr with a 95 % interval. `benchmarks/captioning.py` compares their speed.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from vlm_caption import Captioner, load_captions, runtime
from vlm_caption.metrics import compare, score

REPOSITORY = Path(__file__).resolve().parents[1]


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


def main(argv: Sequence[str] | None = None) -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="+", type=Path, help="what `vlm-caption export` wrote")
    parser.add_argument("--checkpoint", default=str(REPOSITORY / "checkpoints" / "embedded"))
    parser.add_argument("--data", default=str(REPOSITORY.parent / "shared" / "flickr8k"))
    parser.add_argument("--images", type=int, default=1000, help="dev photos to compare captions of (1000)")
    parser.add_argument("--threads", type=int, default=2, help="threads of each captioner (2)")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(arguments.threads)
    dataset = load_captions(arguments.data, split="dev", limit=arguments.images)
    captioners: dict[str, Any] = {"checkpoint": Captioner.from_pretrained(arguments.checkpoint, device="cpu")}
    for folder in arguments.exports:
        captioners[folder.name] = runtime.Captioner.from_pretrained(folder, threads=arguments.threads)
    agreement(captioners, list(dataset["image"]), list(dataset["captions"]))


if __name__ == "__main__":
    main()

"""Writes a page of dev photos with the captions of several checkpoints, or of one with and without a datastore.

    python benchmarks/side_by_side.py checkpoints/embedded runs/mine --output side_by_side.html
    python benchmarks/side_by_side.py checkpoints/embedded --datastore datastore --output side_by_side.html

The photos are every n-th of the dev split, so that the choice is nobody's. The page contains small copies of them.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from vlm_caption import Captioner, load_captions
from vlm_caption.pages import write_comparison

REPOSITORY = Path(__file__).resolve().parents[1]


def main(argv: Sequence[str] | None = None) -> None:
    """Captions the photos and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoints", nargs="+", help="folders or Hub ids")
    parser.add_argument("--data", default=str(REPOSITORY.parent / "shared" / "flickr8k"))
    parser.add_argument("--images", type=int, default=30)
    parser.add_argument("--datastore", help="caption with it too, and with each checkpoint")
    parser.add_argument("--output", type=Path, required=True)
    arguments = parser.parse_args(argv)
    dataset = load_captions(arguments.data, split="dev")
    count = min(arguments.images, len(dataset))
    chosen = dataset.select([number * len(dataset) // count for number in range(count)])
    captions = {}
    for checkpoint in arguments.checkpoints:
        captioner = Captioner.from_pretrained(checkpoint)
        for store in (None, arguments.datastore) if arguments.datastore else (None,):
            name = checkpoint if store is None else f"{checkpoint}, {Path(store).name}"
            captions[name] = [caption.text for caption in captioner.caption(list(chosen["image"]), datastore=store)]
    note = f"{len(chosen)} dev photos of {Path(arguments.data).name}, one in {len(dataset) // len(chosen)}."
    write_comparison(arguments.output, chosen["image"], captions, chosen["captions"], "Captions side by side", note)


if __name__ == "__main__":
    main()

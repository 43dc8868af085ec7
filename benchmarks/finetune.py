"""What a minute of fine-tuning on 50 photos of one kind is worth, and what it costs on all other photos.

    python benchmarks/finetune.py [--words dog snow] [--flickr8k ../shared/flickr8k] [--unseen]

The kind is chosen by words: photos of Flickr8k of which two captions or more have all the words.
`checkpoints/embedded` is fine-tuned with `configs/finetune.yaml` on 50 such photos of the train split, which it has
seen before; with `--unseen`, on 50 of the dev split. Measured before and after, and printed with their ratios: the
CIDEr of captions of all other photos of that kind in the dev split, and the dev loss on the first dev photos of any
kind. The first should rise by 20 % or more, the second by 2 % at most.
"""

import argparse
import csv
import logging
import re
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from datasets import Dataset, disable_progress_bars

from vlm_caption import Captioner, RunConfig, train
from vlm_caption.captioning.generation import caption_rows
from vlm_caption.captioning.nll import caption_nll
from vlm_caption.core.console import setup_logging
from vlm_caption.data import open_corpus
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.inputs import ImageInputs, with_index
from vlm_caption.metrics.scoring import score
from vlm_caption.towers.precision import hold_frozen

REPOSITORY = Path(__file__).parents[1]
PHOTOS, WATCHED = 50, 10  # to train on, and to choose weights by
BATCH_SIZE = 8


def photos_of(dataset: Dataset, words: Sequence[str]) -> Dataset:
    """Returns the rows of which two captions or more have all the words, or words that begin with them."""
    patterns = [re.compile(rf"\b{re.escape(word)}", re.IGNORECASE) for word in words]

    def is_of_kind(row: dict) -> bool:
        return sum(all(pattern.search(caption) for pattern in patterns) for caption in row["captions"]) >= 2

    return dataset.select([number for number, row in enumerate(dataset) if is_of_kind(row)])


def write_table(path: Path, rows: Dataset) -> None:
    """Writes the first rows as a table of captions, to train on and to watch the loss on."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for number, row in enumerate(rows.select(range(PHOTOS + WATCHED))):
            split = "train" if number < PHOTOS else "dev"
            writer.writerows([Path(row["image"]).name, caption, split] for caption in row["captions"])


def measure(checkpoint: str | Path, kind: Dataset, everything: Dataset) -> tuple[float, float]:
    """Returns a checkpoint's CIDEr, a fraction, on photos of the kind, and its loss on others, in nats per token."""
    captioner = Captioner.from_pretrained(checkpoint)
    model, processor = captioner.model, captioner.processor
    hold_frozen(model, "auto")

    def collate(dataset: Dataset) -> CaptionCollator:
        return CaptionCollator(processor, ImageInputs(model, processor, dataset["image"], cache=True))

    captions = caption_rows(model, collate(kind), list(kind), BATCH_SIZE)
    cider = score(captions, kind["captions"], ("cider",)).corpus["cider"]
    return cider, caption_nll(model, everything, collate(everything), BATCH_SIZE)


def main() -> None:
    """Fine-tunes and prints both measures before and after."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--flickr8k", default="../shared/flickr8k", help="the folder of Flickr8k")
    parser.add_argument("--words", nargs="+", default=["dog", "snow"], help="what the captions of the kind say")
    parser.add_argument("--dev-images", type=int, default=200, help="the number of dev photos for the dev loss")
    parser.add_argument("--epochs", type=float, help="instead of those of configs/finetune.yaml")
    parser.add_argument("--learning-rate", type=float, help="instead of that of configs/finetune.yaml")
    parser.add_argument("--unseen", action="store_true", help="train on photos that the parent was not trained on")
    arguments = parser.parse_args()
    setup_logging()
    disable_progress_bars()
    logging.getLogger("transformers").setLevel(logging.ERROR)

    corpus = open_corpus(arguments.flickr8k)
    train_split, dev_split = corpus.load("train"), corpus.load("dev")
    kind = photos_of(dev_split, arguments.words)
    to_train = kind if arguments.unseen else photos_of(train_split, arguments.words)
    if arguments.unseen:
        kind = kind.select(range(PHOTOS + WATCHED, len(kind)))
    kind = with_index(kind)
    used = set(to_train["image"][: PHOTOS + WATCHED])
    others = [number for number, image in enumerate(dev_split["image"]) if image not in used]
    everything = with_index(dev_split.select(others[: arguments.dev_images]))
    parent = REPOSITORY / "checkpoints" / "embedded"
    with tempfile.TemporaryDirectory() as folder:
        table = Path(folder) / "captions.csv"
        write_table(table, to_train)
        cider, loss = measure(parent, kind, everything)
        given = {"training.epochs": arguments.epochs, "training.learning_rate": arguments.learning_rate}
        overrides = {name: value for name, value in given.items() if value is not None}
        overrides |= {"data.path": str(table), "data.images": str(Path(kind[0]["image"]).parent)}
        overrides |= {"training.output_dir": f"{folder}/run", "training.samples": 0}
        start, used = time.perf_counter(), time.process_time()
        train(RunConfig.load(REPOSITORY / "configs" / "finetune.yaml", overrides))
        seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - used
        cider_after, loss_after = measure(f"{folder}/run", kind, everything)
    print(f"{PHOTOS} photos whose captions say {' and '.join(arguments.words)}")
    print(f"training: {seconds:.0f} s, {cpu_seconds:.0f} CPU seconds")  # on a busy machine, the two differ
    print(
        f"CIDEr on {len(kind)} others: {100 * cider:.1f} -> {100 * cider_after:.1f} ({cider_after / cider - 1:+.1%})"
    )
    print(f"loss on {len(everything)} dev photos: {loss:.4f} -> {loss_after:.4f} ({loss_after / loss - 1:+.1%})")


if __name__ == "__main__":
    main()

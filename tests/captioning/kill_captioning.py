"""Kills jobs at seeded random moments and repeats their commands: they must end as if nothing had happened.

    PYTHONPATH=tests python tests/captioning/kill_captioning.py --count 100 --seed 0 [--outputs csv xmp] [--caching]

The jobs are those of scripts/caption.py, whose files must be the same byte for byte; with `--caching`, those of
scripts/cache_features.py, whose features must be the same. The exit code is 1 if any job ended otherwise.
"""

import argparse
import contextlib
import functools
import json
import multiprocessing
import os
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

PICTURES, BATCH_SIZE = 24, 2

PRELOADED = [
    "timm",
    "transformers.models.dinov2.modeling_dinov2",
    "transformers.models.gpt2.modeling_gpt2",
    "vlm_caption.captioning.job",
    "vlm_caption.training.feature_caching",
]


@dataclass(frozen=True)
class Outcome:
    """How one job ended: when it was killed, and whether it ended with the same content."""

    moment: str
    killed: bool
    equal: bool

    def __str__(self) -> str:
        state = "killed" if self.killed else "had ended"
        return f"{self.moment}: {state}; then {'the same content' if self.equal else 'ANOTHER'}"


def run_script(script: str, argv: list[str], cache: str) -> None:
    """Runs a script in this process, without its output."""
    from commands import load_script

    os.environ["VLM_CAPTION_CACHE"] = cache
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: PTH123, SIM115 - until the process ends
    sys.exit(load_script(script).main(argv))


class CaptioningJob:
    """Photos, a command that captions them, and where its captions go.

    Args:
        folder: Holds the checkpoint, and gets the photos. They are restored before each job.
        originals: The photos.
        output: A key of `OUTPUTS`.
        batch_size: The pictures in a batch.
    """

    # The options of each kind of output.
    OUTPUTS: ClassVar = {
        "lines": ["--output", "c.jsonl"],
        "csv": ["--output", "c.csv"],
        "parquet": ["--output", "c.parquet"],
        "coco": ["--output", "c.json", "--format", "coco"],
        "sidecars": ["--sidecars"],
        "xmp": ["--xmp"],
        "all": ["--output", "c.csv", "--sidecars", "--xmp"],
    }

    def __init__(self, folder: Path, originals: Path, output: str, batch_size: int):
        self.folder, self.originals = folder, originals
        self.photos, self.outputs = folder / "photos", folder / "outputs"
        options = [
            str(self.outputs / option) if option.startswith("c.") else option for option in self.OUTPUTS[output]
        ]
        self.options = ["--checkpoint", str(folder / "checkpoint"), "--batch-size", str(batch_size), str(self.photos)]
        self.options += ["--sample", "--seed", "1", "--max-new-tokens", "12", *options]
        self.is_xmp = output == "xmp"

    def restore(self) -> None:
        for place in (self.photos, self.outputs):
            shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(self.originals, self.photos)
        self.outputs.mkdir()

    def start(self):
        return _start("caption", self.options, str(self.folder))

    def count_done(self) -> int:
        """Returns the number of captions that are written."""
        if self.is_xmp:
            photos = list(self.originals.iterdir())
            return sum((self.photos / photo.name).stat().st_size != photo.stat().st_size for photo in photos)
        kept = [path for path in self.outputs.iterdir() if path.suffix == ".jsonl"]  # of a table, hidden until its end
        if kept:
            with contextlib.suppress(FileNotFoundError):
                return kept[0].read_bytes().count(b"\n")
        return len(list(self.photos.glob("*.txt")))

    def content(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for place in (self.photos, self.outputs) for path in place.iterdir()}


def kill_captioning(
    folder: Path,
    count: int,
    seed: int,
    outputs: Sequence[str] = ("lines",),
    originals: Path | None = None,
    kills: int = 1,
    batch_size: int = BATCH_SIZE,
) -> Iterator[Outcome]:
    """Captions pictures once in peace, and then with a kill −9 and a repetition; yields each outcome.

    Args:
        folder: An empty folder.
        count: How many jobs are killed for each kind of output.
        seed: The seed of the moments.
        outputs: Keys of `CaptioningJob.OUTPUTS`.
        originals: The pictures. By default some are drawn, one of which is bad.
        kills: How often each job is killed.
        batch_size: The pictures in a batch.
    """
    code = 0
    _save_checkpoint(folder / "checkpoint")
    if originals is None:
        originals, code = _draw_pictures(folder / "originals"), 1
    pictures = len(list(originals.iterdir()))
    draw = random.Random(seed)
    for output in outputs:
        job = CaptioningJob(folder, originals, output, batch_size)
        job.restore()
        _finish(job.start(), code)
        expected = job.content()
        assert set(expected) - {path.name for path in originals.iterdir()} or output == "xmp"
        for _ in range(count):
            job.restore()
            moments = sorted(draw.randrange(0, pictures - 1) for _ in range(kills))
            delay = draw.random() * 0.01
            killed = [
                _kill(job.start(), lambda after=after, job=job: job.count_done() >= after, delay) for after in moments
            ]
            _finish(job.start(), code)
            yield Outcome(
                f"{output}, after {moments} captions + {delay:.4f} s", any(killed), job.content() == expected
            )


def _draw_pictures(folder: Path) -> Path:
    from tiny_models import picture

    folder.mkdir()
    for number in range(PICTURES):
        picture(number).save(folder / f"{number:02}.png")
    (folder / "05.png").write_bytes(b"no picture")
    return folder


def kill_caching(folder: Path, count: int, seed: int) -> Iterator[Outcome]:
    """Caches features once in peace and `count` times with a kill −9 and a repetition; see `kill_captioning`."""
    import torch
    from safetensors.torch import load_file
    from tiny_models import save_vision_tower
    from tiny_runs import write_colours

    tower = save_vision_tower(folder / "tower", "dinov2")
    config = Path(__file__).parents[2] / "configs" / "tiny.yaml"
    options = ["--config", str(config), "--data.path", str(write_colours(folder)), "--model.vision", str(tower)]

    def start(name: str):
        return _start("cache_features", options, str(folder / name))

    def content(name: str) -> list[bytes]:
        shards = [load_file(shard) for shard in (folder / name).glob("features/*/*.safetensors")]
        rows = [row for shard in shards for values in shard.values() for row in values]
        return sorted(row.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for row in rows)

    draw = random.Random(seed)
    _finish(start("whole"), code=0)
    for number in range(count):
        name, delay = str(number), draw.random() * 0.05
        is_near = lambda name=name: any((folder / name / "features").glob("*"))  # noqa: E731
        killed = _kill(start(name), is_near, delay)
        _finish(start(name), code=0)
        yield Outcome(f"caching + {delay:.4f} s", killed, content(name) == content("whole"))


def _save_checkpoint(folder: Path) -> None:
    """Saves a random captioner whose captions depend on the picture."""
    import torch

    from vlm_caption import compose

    vision = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96}
    torch.manual_seed(0)
    model, processor = compose(vision | {"image_size": 28, "patch_size": 14}, language | {"initializer_range": 0.5})
    model.save_pretrained(folder)
    processor.save_pretrained(folder)


def _start(script: str, argv: list[str], cache: str):
    context = multiprocessing.get_context("forkserver")  # imports once, forks for every job
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=run_script, args=(script, argv, cache))
    process.start()
    return process


def _kill(process, is_near: Callable[[], bool], delay: float) -> bool:
    """Kills a job some time after it is near the moment. Returns whether it was still running."""
    while process.is_alive() and not is_near():
        time.sleep(0.002)
    time.sleep(delay)
    killed = process.is_alive()
    process.kill()
    process.join()
    return killed


def _finish(process, code: int) -> None:
    process.join()
    if process.exitcode != code:
        raise RuntimeError(f"a job ended with exit code {process.exitcode} instead of {code}")


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--caching", action="store_true")
    parser.add_argument("--outputs", nargs="+", choices=CaptioningJob.OUTPUTS, default=["lines"])
    parser.add_argument("--photos", type=Path, help="the folder of the pictures; by default some are drawn")
    parser.add_argument("--batch-size", type=int, default=BATCH_SIZE)
    parser.add_argument("--kills", type=int, default=1, help="of each job")
    arguments = parser.parse_args()
    kill = kill_caching
    if not arguments.caching:
        kill = functools.partial(
            kill_captioning,
            outputs=arguments.outputs,
            originals=arguments.photos,
            kills=arguments.kills,
            batch_size=arguments.batch_size,
        )
    with tempfile.TemporaryDirectory() as folder:
        outcomes = []
        for outcome in kill(Path(folder), arguments.count, arguments.seed):
            outcomes.append(outcome)
            print(f"{len(outcomes):3} {outcome}", flush=True)
    counts = {name: sum(getattr(outcome, name) for outcome in outcomes) for name in ("killed", "equal")}
    print(json.dumps({"jobs": len(outcomes), **counts}))
    return 0 if counts["equal"] == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

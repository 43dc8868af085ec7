"""Kills a tiny training run at seeded random moments and starts it again: it must end with the very same weights and
the very same log.

    python tests/kill_training.py --count 20 --seed 0 [--staged]

The moments are drawn in turn from four places: while image features are cached, between checkpoints, while a
checkpoint is written, and from the last checkpoint on, where the bridge is saved; with `--staged`, in each of two
stages in turn, the projector's and one of all modules. The exit code is 1 if any run ended with others.
"""

import argparse
import json
import multiprocessing
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import cycle, islice
from pathlib import Path

from safetensors.numpy import load_file

STEPS, SAVE_STEPS = 12, 3
_TIMES = re.compile("second|runtime")  # what differs in the logs of equal runs
PLACES = ("caching", "training", "checkpoint", "end")
STAGES = [
    {"name": "align"},
    {
        "name": "tune",
        "train_vision": {"policy": "last_n", "layers": 1, "learning_rate": 1e-4},
        "train_language": {"policy": "lora", "rank": 2, "dropout": 0.1, "learning_rate": 1e-3},
    },
]


@dataclass(frozen=True)
class Outcome:
    """How one run ended: when it was killed, what its folder held then, and whether it ended with the same weights and
    the same log."""

    moment: str
    killed: bool
    left: list[str]
    equal: bool

    def __str__(self) -> str:
        state = f"killed beside {', '.join(self.left) or 'nothing'}" if self.killed else "had ended"
        return f"{self.moment}: {state}; then {'the same weights and log' if self.equal else 'OTHERS'}"


def train(folder: Path, name: str, staged: bool) -> None:
    """The run: tiny towers, sampled captions, features cached for this run alone. Called in a process of its own."""
    from tiny_runs import tiny_settings

    from vlm_caption.config.run_config import RunConfig
    from vlm_caption.training.train import train

    os.environ["VLM_CAPTION_CACHE"] = str(folder / f"cache-{name}")
    settings = tiny_settings(folder) | {
        "data.captions_per_image": "sample",
        "training.output_dir": str(folder / name),
        "training.batch_size": 3,
        "training.max_steps": STEPS,
        "training.save_steps": SAVE_STEPS,
        "training.eval_steps": 4,
        "training.eval_captions": 3,
        "training.samples": 1,
        "training.ema_decay": 0.9,
    }
    config = RunConfig.load(None, settings)
    config.stages = STAGES if staged else []
    train(config)


def kill_runs(folder: Path, count: int, seed: int, staged: bool = False) -> Iterator[Outcome]:
    """Runs the tiny training once in peace and `count` times with a kill −9 and a restart; yields each one's outcome.

    Args:
        folder: an empty one.
        count: how many runs are killed.
        seed: of the moments.
        staged: whether the run has two stages.
    """
    from tiny_runs import write_colours

    table = write_colours(folder)
    header, *rows = table.read_text().splitlines()
    more = [row.replace("png,", f"png,{word} ") for row in rows for word in ("a", "the very", "some")]
    table.write_text("\n".join([header, *rows, *more]))
    context = multiprocessing.get_context("forkserver")  # imports once, forks for every run
    context.set_forkserver_preload(["vlm_caption.training.train"])

    def start(name: str):
        process = context.Process(target=train, args=(folder, name, staged))
        process.start()
        return process

    def log(name: str) -> list[dict]:
        files = sorted((folder / name).glob("**/metrics.jsonl"))
        lines = [json.loads(line) for file in files for line in file.read_text().splitlines()]
        return [{key: value for key, value in line.items() if not _TIMES.search(key)} for line in lines]

    def finish(name: str) -> dict:
        process = start(name)
        process.join()
        if process.exitcode:
            raise RuntimeError(f"the run {name} ended with exit code {process.exitcode}")
        return load_file(folder / name / "model.safetensors")

    expected = finish("whole")
    draw = random.Random(seed)
    for number, place in enumerate(islice(cycle(PLACES), count)):
        name = f"killed-{number}"
        output = folder / name
        stage = number % len(STAGES) + 1
        at = output / f"stage-{stage}-{STAGES[stage - 1]['name']}" if staged else output
        moment, is_there, delay = _draw_moment(draw, place, at, folder / f"cache-{name}")
        process = start(name)
        while process.is_alive() and not is_there():
            time.sleep(0.0005)
        time.sleep(delay)
        killed = process.is_alive()
        process.kill()
        process.join()
        left = sorted(path.name for path in output.glob("*") if path.name.startswith(("checkpoint", "model")))
        weights = finish(name)
        equal = weights.keys() == expected.keys() and all((weights[key] == expected[key]).all() for key in expected)
        equal = equal and log(name) == log("whole")
        yield Outcome(moment, killed, left, equal)


def _draw_moment(draw: random.Random, place: str, output: Path, cache: Path) -> tuple[str, Callable[[], bool], float]:
    """Its name, the sign that it is near, and the seconds from there on."""
    step = draw.randrange(SAVE_STEPS, STEPS, SAVE_STEPS)
    delay = draw.random() * {"caching": 0.05, "training": 0.3, "checkpoint": 0.03, "end": 0.3}[place]
    if place == "caching":
        return f"caching + {delay:.3f} s", lambda: any((cache / "features").glob("*")), delay
    if place == "training":
        return f"after step {step} + {delay:.3f} s", (output / f"checkpoint-{step}").exists, delay
    if place == "end":
        return f"after step {STEPS} + {delay:.3f} s", (output / f"checkpoint-{STEPS}").exists, delay
    before, partial = output / f"checkpoint-{step}", output / "checkpoint.partial"
    return (
        f"writing checkpoint {step + SAVE_STEPS} + {delay:.3f} s",
        lambda: before.exists() and partial.exists(),
        delay,
    )


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--staged", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        outcomes = []
        for outcome in kill_runs(Path(folder), arguments.count, arguments.seed, arguments.staged):
            outcomes.append(outcome)
            print(f"{len(outcomes):3} {outcome}", flush=True)
    equal = sum(outcome.equal for outcome in outcomes)
    print(f"{equal} of {len(outcomes)} ended with the same weights and log, bit for bit")
    return 0 if equal == len(outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())

"""Kills an actor of Ray and then the command that started it, at seeded random moments, and repeats the command: the
captions must be those of a command in peace that uses no Ray, with each picture once.

    PYTHONPATH=tests python tests/kill_ray.py --count 10 --seed 0 [--checkpoint exported]

The exit code is 1 if any job ended otherwise, or left processes behind.
"""

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
from commands import REPOSITORY
from tiny_models import picture

PICTURES, BATCH_SIZE = 240, 2

# In seconds, at most. Ray's processes notice the end of the one that started them.
LINGERING = 300


@dataclass(frozen=True)
class Outcome:
    """How one job ended.

    Attributes:
        seed: The seed of its moments.
        actor_after, command_after: How many captions were there when the actor and then the command was killed; None:
            it had ended.
        times: How many pictures have captions so many times.
        is_equal: Whether the file is that of the command in peace, byte for byte.
        left: The processes that were left.
    """

    seed: int
    actor_after: int | None
    command_after: int | None
    times: dict[int, int]
    is_equal: bool
    left: list[str]

    @property
    def is_good(self) -> bool:
        return self.is_equal and self.times.keys() == {1} and not self.left


def kill_ray(
    folder: Path, seeds: range, checkpoint: Path | None = None, pictures: int = PICTURES
) -> Iterator[Outcome]:
    """Captions pictures once in peace, and then for each seed with two kills and a repetition; yields each outcome.

    Args:
        folder: An empty folder.
        seeds: The seeds.
        checkpoint: What writes the captions, by default a tiny random captioner.
        pictures: How many pictures are drawn. One of them is bad.
    """
    if checkpoint is None:
        checkpoint = _save_checkpoint(folder / "checkpoint")
    photos = folder / "photos"
    photos.mkdir()
    for number in range(pictures):
        picture(number).save(photos / f"{number:03}.png")
    (photos / "005.png").write_bytes(b"no picture")
    options = ["--checkpoint", str(checkpoint), "--batch-size", str(BATCH_SIZE), "--max-new-tokens", "12"]
    options += [str(photos)]
    expected = folder / "expected.jsonl"
    _finish(_start(["--output", str(expected), *options]))
    for seed in seeds:
        output = folder / f"{seed}.jsonl"
        command = ["--engine", "ray", "--actors", "2", "--output", str(output), *options]
        after, left = _interrupt(_start(command), output, pictures, random.Random(seed))
        _finish(_start(command))
        times = Counter(Counter(json.loads(line)["image"] for line in output.open()).values())
        yield Outcome(seed, *after, dict(times), output.read_bytes() == expected.read_bytes(), left)


def _save_checkpoint(folder: Path) -> Path:
    """Saves a random captioner whose captions are not empty."""
    import torch

    from vlm_caption import compose

    vision = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "initializer_range": 0.5}
    torch.manual_seed(0)
    model, processor = compose(vision | {"image_size": 28, "patch_size": 14}, language | {"n_positions": 96})
    for part in (model, processor):
        part.save_pretrained(folder)
    return folder


def _interrupt(
    process: subprocess.Popen, output: Path, pictures: int, draw: random.Random
) -> tuple[list[int | None], list[str]]:
    """Kills an actor of a command, and later the command itself.

    Returns:
        How many captions were there at each kill, or None if the command had ended; and the processes that are left.
    """
    moments = sorted(draw.randrange(1, pictures * 3 // 4) for _ in range(2))
    command = psutil.Process(process.pid)
    after = [_wait(process, output, moments[0])]
    below = command.children(recursive=True) if after[0] is not None else []
    if below:
        draw.choice([each for each in below if _is_actor(each)]).kill()
    after.append(_wait(process, output, moments[1]))
    below += command.children(recursive=True) if after[1] is not None else []
    process.kill()
    process.wait()
    _, left = psutil.wait_procs(below, timeout=LINGERING)
    return after, [str(each) for each in left]


def _start(options: list[str]) -> subprocess.Popen:
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    environment |= {"PYTHONPATH": os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])}
    return subprocess.Popen(
        [sys.executable, "-m", "vlm_caption", "caption", *options],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _finish(process: subprocess.Popen) -> None:
    _, complaints = process.communicate()
    if process.returncode != 1:  # one picture is bad
        raise RuntimeError(f"a job ended with exit code {process.returncode} instead of 1:\n{complaints}")


def _wait(process: subprocess.Popen, output: Path, count: int) -> int | None:
    """Waits until so many captions are written. Returns how many there are, or None if the process has ended."""
    while process.poll() is None:
        there = output.read_bytes().count(b"\n") if output.exists() else 0
        if there >= count:
            return there
        time.sleep(0.002)
    return None


def _is_actor(process: psutil.Process) -> bool:
    try:
        return any(part.startswith("ray::") and "CaptionActor" in part for part in process.cmdline())
    except psutil.Error:
        return False


def main() -> int:
    """Returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--count", type=int, default=10, help="jobs (10)")
    parser.add_argument("--seed", type=int, default=0, help="of the first one (0)")
    parser.add_argument("--checkpoint", type=Path, help="a checkpoint or an export; by default a tiny random one")
    parser.add_argument("--pictures", type=int, default=PICTURES, help=f"drawn at random ({PICTURES})")
    arguments = parser.parse_args()
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    good = 0
    with tempfile.TemporaryDirectory() as folder:
        for outcome in kill_ray(Path(folder), seeds, arguments.checkpoint, arguments.pictures):
            good += outcome.is_good
            print(outcome, flush=True)
    print(json.dumps({"jobs": len(seeds), "good": good}))
    return int(good < len(seeds))


if __name__ == "__main__":
    sys.exit(main())

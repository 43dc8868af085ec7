"""Two actors of Ray beside one process, on the same pictures: `python benchmarks/ray_engine.py --photos photos`.

Options behind `--`, such as `-- --num-beams 1`, are those of captioning.

Each captions the pictures with the same number of cores, in turn, and medians count. The start of a command, up to the
first captions that it writes, is told apart. Seconds are of the clock, and beside them of the processor, in all
processes: other work on the machine adds only to the former. The last lines are the ratios of the two, and what a core
captions in an hour of processor time, for the sum in docs/scale.md.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

REPOSITORY = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class Moment:
    """How many captions there are after so many seconds of the clock and of the processor."""

    captions: int
    clock: float
    processor: float


@dataclass(frozen=True)
class Run:
    """One command: seconds up to its first captions, and seconds for each picture after these."""

    start: float
    clock: float
    processor: float


class Watch:
    """Watches a command, its processes and its file of captions."""

    def __init__(self, command: list[str], environment: dict[str, str], output: Path) -> None:
        self.output = output
        self.begin = time.perf_counter()
        self.process = subprocess.Popen(command, env=environment, stderr=subprocess.DEVNULL)
        self.times: dict[int, float] = {}

    def moments(self) -> list[Moment]:
        """Returns the moments at which captions were written."""
        found: list[Moment] = []
        while self.process.poll() is None:
            count = self.output.read_bytes().count(b"\n") if self.output.exists() else 0
            if count > (found[-1].captions if found else 0):
                found.append(Moment(count, time.perf_counter() - self.begin, self._processor()))
            time.sleep(0.1)
        if self.process.returncode or len(found) < 2:
            raise SystemExit(f"The command has failed, or has too few pictures (exit code {self.process.returncode}).")
        return found

    def _processor(self) -> float:
        with suppress(psutil.Error):
            main = psutil.Process(self.process.pid)
            for each in (main, *main.children(recursive=True)):
                with suppress(psutil.Error):
                    own = each.cpu_times()
                    self.times[each.pid] = own.user + own.system
        return sum(self.times.values())


def run(options: list[str], folder: Path, threads: int) -> Run:
    """Runs `vlm-caption caption` with so many threads in its process."""
    output = folder / "captions.jsonl"
    output.unlink(missing_ok=True)
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    environment["PYTHONPATH"] = os.pathsep.join([str(REPOSITORY), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "vlm_caption", "caption", "--output", str(output), *options]
    first, *_, last = Watch(command, environment, output).moments()
    pictures = last.captions - first.captions
    return Run(first.clock, (last.clock - first.clock) / pictures, (last.processor - first.processor) / pictures)


def main() -> None:
    """Prints a line for each engine, and the ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--photos",
        type=Path,
        required=True,
        help="a folder of pictures: with fewer than several hundred, what the actors do at the same time as the first "
        "captions are written counts as start",
    )
    parser.add_argument("--checkpoint", default=str(REPOSITORY / "checkpoints" / "embedded"))
    parser.add_argument("--actors", type=int, default=2, help="actors of one core each, and cores of the process (2)")
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--runs", type=int, default=3, help="of each engine (3)")
    parser.add_argument("options", nargs="*", help="other options of the command, behind --")
    arguments = parser.parse_args()
    shared = ["--checkpoint", arguments.checkpoint, "--batch-size", str(arguments.batch_size), str(arguments.photos)]
    actors = ["--engine", "ray", "--actors", str(arguments.actors)]
    engines: dict[str, tuple[list[str], int]] = {"one process": ([], arguments.actors), "Ray": (actors, 1)}
    runs: dict[str, list[Run]] = {name: [] for name in engines}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(arguments.runs):
            for name, (engine, threads) in engines.items():
                runs[name].append(run([*shared, *engine, *arguments.options], Path(folder), threads))
    medians = {
        name: Run(
            *(statistics.median(getattr(each, field) for each in own) for field in ("start", "clock", "processor"))
        )
        for name, own in runs.items()
    }
    for name, median in medians.items():
        print(
            f"{name}: {1 / median.clock:.2f} pictures a second, {median.processor:.3f} s of the processor each; "
            f"{median.start:.1f} s up to the first captions"
        )
    process, with_ray = medians.values()
    print(
        f"Ray is {process.clock / with_ray.clock:.2f} x as fast by the clock, and "
        f"{process.processor / with_ray.processor:.2f} x by the processor's seconds"
    )
    print(f"A core captions {3600 / with_ray.processor:,.0f} pictures in an hour")


if __name__ == "__main__":
    main()

"""Damaged and hostile checkpoints by the hundred: `python tests/model/fuzz_checkpoints.py --count 500 --seed 1`.

Each must end in a captioner, or in one sentence (`BackboneError`, `CheckpointError`), within 20 s of CPU time and 2 GB
of memory, and run no code. Case N of a seed is always the same one: `--start N --count 1` repeats it.
"""

import argparse
import json
import random
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from tiny_models import picture, save_checkpoint, save_language_model, save_vision_tower

from vlm_caption import BackboneError, Captioner, compose

MAX_SECONDS = 20.0
MAX_BYTES = 2 << 30
JSON_FILES = ("config.json", "config.json", "config.json", "processor_config.json", "tokenizer_config.json")
HOSTILE: tuple[Any, ...] = (
    *(0, -1, 1, 3, 10**7, 10**12, 1.5, True, None, "", "x", "12", "../../x"),
    *([], [1], [10**7], {}, {"a": 1}, {"auto_map": {"AutoTokenizer": ["trap.Trap", None]}}),
)


def write_originals(folder: Path) -> list[Path]:
    """Writes good checkpoints: a full one, and a bridge. Returns their folders."""
    full = save_checkpoint(folder / "full", pictures=0)
    model, processor = compose(save_vision_tower(folder / "vision"), save_language_model(folder / "language"))
    model.save_pretrained(folder / "bridge")
    processor.save_pretrained(folder / "bridge")
    return [full, folder / "bridge"]


def change_value(content: Any, rng: random.Random) -> None:
    """Changes or drops one value of nested JSON, at any depth."""
    while True:
        keys = list(content) if isinstance(content, dict) else list(range(len(content)))
        key = rng.choice(keys)
        if isinstance(content[key], dict | list) and content[key] and rng.random() < 0.8:
            content = content[key]
            continue
        if rng.random() < 0.1:
            del content[key]
        else:
            content[key] = rng.choice(HOSTILE)
        return


def damage(folder: Path, rng: random.Random) -> str:
    """Damages one file of a checkpoint. Returns what was done."""
    kind = rng.choice(("value", "value", "value", "value", "top", "bytes", "weights", "shapes"))
    if kind == "value":
        path = folder / rng.choice(JSON_FILES)
        content = json.loads(path.read_text())
        change_value(content, rng)
        path.write_text(json.dumps(content))
    elif kind == "top":
        path = folder / rng.choice(JSON_FILES)
        path.write_text(rng.choice(("[]", "null", "1", "", "{", "{}", "[" * 100_000)))
    elif kind == "bytes":
        path = folder / rng.choice((*JSON_FILES, "tokenizer.json", "generation_config.json"))
        raw = bytearray(path.read_bytes())
        raw[rng.randrange(len(raw))] = rng.randrange(256)
        path.write_bytes(raw)
    else:
        path = folder / "model.safetensors"
        raw = bytearray(path.read_bytes())
        if kind == "weights" and rng.random() < 0.5:
            del raw[rng.randrange(len(raw)) :]
        else:  # mostly in the header, which says names, shapes and places
            reach = 8 + int.from_bytes(raw[:8], "little") if kind == "shapes" else 8
            raw[rng.randrange(reach)] ^= 1 << rng.randrange(8)
        path.write_bytes(raw)
    return f"{kind} in {folder.name}/{path.name}"


def run_case(seed: int, number: int, originals: list[Path], scratch: Path) -> tuple[str, str | None]:
    """Damages a checkpoint and loads it. Returns what came of it, and what was wrong with that."""
    rng = random.Random(f"{seed}-{number}")
    original = rng.choice(originals)
    folder = shutil.copytree(original, scratch / original.name)
    trap = scratch / "ran"
    (folder / "trap.py").write_text(f"open({str(trap)!r}, 'w').close()\nclass Trap: pass\n")
    done = damage(folder, rng)
    start = time.process_time()
    problem = None
    try:
        captioner = Captioner.from_pretrained(folder, device="cpu")
        outcome = "loaded"
    except BackboneError as error:
        outcome = "refused"
        if "\n" in str(error):
            problem = f"{done}: more than a line: {error}"
    except Exception:
        outcome, problem = "failed", f"{done}: {traceback.format_exc()}"
    if outcome == "loaded":
        try:
            captioner.caption(picture(), max_new_tokens=2, num_beams=1)
        except Exception as error:  # loaded, and of no use: to be counted, and read by a person
            outcome = f"loaded, then {type(error).__name__} ({done})"
    if trap.exists():
        problem = f"{done}: code of the checkpoint ran"
    if (seconds := time.process_time() - start) > MAX_SECONDS:
        problem = f"{done}: {seconds:.1f} s"
    shutil.rmtree(folder)
    return outcome, problem


def peak_memory() -> int:
    """Returns the most bytes of memory that this process has used."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def fuzz(seed: int, start: int, count: int) -> tuple[Counter, list[str]]:
    """Runs cases. Returns how often each outcome came, and what was wrong."""
    outcomes, problems = Counter(), []
    used_before = peak_memory()  # by the tests that ran in this process
    with tempfile.TemporaryDirectory() as name:
        originals = write_originals(Path(name))
        scratch = Path(name, "scratch")
        for number in range(start, start + count):
            outcome, problem = run_case(seed, number, originals, scratch)
            outcomes[outcome] += 1
            if problem is not None:
                problems.append(f"case {number} of seed {seed}: {problem}")
    used = peak_memory()
    if used > max(MAX_BYTES, used_before):
        problems.append(f"{used >> 20} MiB of memory")
    return outcomes, problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--start", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    outcomes, problems = fuzz(arguments.seed, arguments.start, arguments.count)
    print(*problems, sep="\n\n")
    print(dict(outcomes))
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())

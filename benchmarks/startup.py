"""How long it takes to start, as ratios measured in one run: `python benchmarks/startup.py`.

It compares `--help` and mistakes with `python -c pass`. It compares the time from the start of a process to its first
caption with `import torch`, and with a script of ten lines that loads the same two towers with transformers alone and
generates as many tokens. The runs alternate, and the fastest run of each command counts, because other work on the
machine only adds time.
"""

import argparse
import os
import subprocess
import sys
import time
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parents[1]
PHOTO = REPOSITORY / "examples" / "officer.jpg"

# The least that any captioner with these two towers has to do.
PLAIN = """
import sys, torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoTokenizer
vision, language, photo = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(vision, backend="pil")
pixels = processor(Image.open(photo).convert("RGB"), return_tensors="pt")
with torch.inference_mode():
    AutoModel.from_pretrained(vision)(**pixels)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(language), AutoTokenizer.from_pretrained(language)
    ids = model.generate(**tokenizer("A photo of", return_tensors="pt"), max_new_tokens=20, num_beams=3)
print(tokenizer.decode(ids[0]))
"""


def seconds(command: list[str], code: int = 0) -> tuple[float, float]:
    """Returns the seconds that a command takes: by the clock, and of the processor.

    Args:
        command: The arguments of Python.
        code: The exit code that it must have.
    """
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "HF_HUB_OFFLINE": "1"}
    before, start = os.times(), time.perf_counter()
    process = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)
    wall, after = time.perf_counter() - start, os.times()
    if process.returncode != code:
        raise RuntimeError(f"{command} ended with exit code {process.returncode}: {process.stderr}")
    processor = after.children_user + after.children_system - before.children_user - before.children_system
    return wall, processor


def main() -> None:
    """Prints a table of seconds and ratios."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3, help="runs of each command (3)")
    runs = parser.parse_args().runs

    from vlm_caption import resolve_backbone

    towers = [str(resolve_backbone(name)) for name in ("wheel:dinov2-small", "wheel:smollm2-135m-instruct")]
    script = str(REPOSITORY / "scripts" / "caption.py")
    commands = {
        "python -c pass": (["-c", "pass"], 0),
        "caption.py --help": ([script, "--help"], 0),
        "train.py --help": ([str(REPOSITORY / "scripts" / "train.py"), "--help"], 0),
        "an unknown option": ([script, "--beams", "3"], 2),
        "a missing file": ([script, "none.jpg"], 1),
        "import torch": (["-c", "import torch"], 0),
        "plain transformers": (["-c", PLAIN, *towers, str(PHOTO)], 0),
        "first caption": ([script, str(PHOTO), "--max-new-tokens", "20"], 0),
    }
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in commands}
    for _ in range(runs):
        for name, (command, code) in commands.items():
            measured[name].append(seconds(command, code))
    best = {name: tuple(map(min, zip(*times, strict=True))) for name, times in measured.items()}
    print(f"{'':20}  wall, s  processor, s")
    for name, (wall, processor) in best.items():
        print(f"{name:20}{wall:9.2f}{processor:14.2f}")
    print("Ratios of processor time:")
    for name, against in (
        ("caption.py --help", "python -c pass"),
        ("train.py --help", "python -c pass"),
        ("first caption", "import torch"),
        ("first caption", "plain transformers"),
    ):
        print(f"  {name} / {against}: {best[name][1] / best[against][1]:.2f}")


if __name__ == "__main__":
    main()

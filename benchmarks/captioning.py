"""Captions from the bytes of JPEGs to text, beside other captioners and beside what this machine could do at most.

    python benchmarks/captioning.py [EXPORT ...] [--batch-sizes 1 8 32] [--beams 1 3] [--runs 3]

The captioners take turns on the same photos, and medians count:

- the checkpoint in each dtype, and folders that `vlm-caption export` wrote;
- the checkpoint through transformers' `generate` and a second pass for the scores;
- `VisionEncoderDecoder` of transformers (ViT-B/16 and GPT-2) and BLIP-base, with random weights, which makes them
  neither faster nor slower. They are made to write as many tokens as the checkpoint wrote on average;
- the floor: the arithmetic of the checkpoint's tower and language model at the rate of a large matrix product; for a
  pass of the language model, reading its weights once from memory, if that takes longer. Both rates are measured
  between the runs.

Then come the time from the start of a process to its first caption, its peak memory, and the size on disk. Everything
runs on one thread, and seconds are of the processor, so other work on the machine counts only through caches.
"""

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
import transformers
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from vlm_caption import Captioner, runtime
from vlm_caption.captioning import generation
from vlm_caption.runtime.pixels import PixelSettings, to_pixels

REPOSITORY = Path(__file__).resolve().parents[1]

# In a process of its own: a first caption, and then a batch, in which memory is at its peak.
FIRST_CAPTION = """
import sys, time
from {module} import Captioner
captioner = Captioner.from_pretrained({path!r}{options})
captioner.caption(sys.argv[1])
seconds = time.process_time()
captioner.caption(sys.argv[1:], batch_size=len(sys.argv) - 1)
"""
IMPORT_TORCH = """
import time, torch
seconds = time.process_time()
"""
# From Linux: `ru_maxrss` would begin at what this process holds.
PRINT = """
with open("/proc/self/status") as file:
    [peak] = [int(line.split()[1]) for line in file if line.startswith("VmHWM")]
print([seconds, peak * 1024 / 1e6])
"""


class Random:
    """A captioner of transformers with random weights, which writes a given number of tokens.

    Args:
        model: The model.
        size: Height and width of its pictures.
        tokenizer: Any; it is only here because text has to be made of tokens.
    """

    def __init__(self, model: Any, size: int, tokenizer: Any) -> None:
        self.model, self.tokenizer = model.eval(), tokenizer
        self.pixels = PixelSettings([size, size], Image.Resampling.BICUBIC, None, 1 / 255, [0.5] * 3, [0.5] * 3)

    @torch.inference_mode()
    def caption(self, photos: Sequence[bytes], num_beams: int, length: int) -> list[str]:
        """Writes captions of this many tokens."""
        opened = [Image.open(BytesIO(photo)).convert("RGB") for photo in photos]
        pixels = torch.from_numpy(np.concatenate([to_pixels(image, self.pixels) for image in opened]))
        ids = self.model.generate(
            pixel_values=pixels, num_beams=num_beams, do_sample=False, min_new_tokens=length, max_new_tokens=length
        )
        return self.tokenizer.batch_decode(ids.clamp_max(len(self.tokenizer) - 1))


def build_encoder_decoder(tokenizer: Any) -> Random:
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(
        transformers.ViTConfig(), transformers.GPT2Config(bos_token_id=0, eos_token_id=0)
    )
    model = transformers.VisionEncoderDecoderModel(config)
    model.generation_config.update(decoder_start_token_id=0, bos_token_id=0, eos_token_id=0, pad_token_id=0)
    return Random(model, 224, tokenizer)


def build_blip(tokenizer: Any) -> Random:
    size = 384
    config = transformers.BlipConfig(vision_config={"image_size": size})
    return Random(transformers.BlipForConditionalGeneration(config), size, tokenizer)


RANDOM = {"VisionEncoderDecoder": build_encoder_decoder, "BLIP-base": build_blip}


@contextmanager
def by_transformers() -> Generator[None]:
    """Makes checkpoints write by `generate` inside a `with` block."""
    with patch.object(generation, "known_settings", lambda *_: None):
        yield


class Floor:
    """The least time in which this machine could do the arithmetic of a captioner.

    Args:
        captioner: The captioner. Its language model is watched from now on.
    """

    def __init__(self, captioner: Captioner) -> None:
        core = captioner.model.core
        dtype = next(core.language_model.parameters()).dtype
        self._of_picture = _operations(lambda: core.encode_images(torch.zeros(1, 3, 224, 224)))
        one, two = (
            _operations(lambda ids=ids: core.language_model(input_ids=ids, use_cache=False, logits_to_keep=1))
            for ids in (torch.zeros(1, length, dtype=torch.long) for length in (1, 2))
        )
        self._of_token, self._of_head = two - one, 2 * one - two  # only the last token of a pass goes through the head
        self._size = sum(weight.numel() * weight.element_size() for weight in core.language_model.parameters())
        self.passes: list[tuple[int, int]] = []  # rows and tokens of each pass of the language model
        core.language_model.register_forward_hook(self._watch, with_kwargs=True)
        self._matrix = torch.randn(2048, 2048).to(dtype)
        self._weights, self._vector = torch.randn(16384, 4096).to(dtype), torch.randn(4096).to(dtype)

    def _watch(self, _module: Any, _inputs: Any, kwargs: dict[str, Any], _outputs: Any) -> None:
        given = kwargs["inputs_embeds"] if kwargs.get("input_ids") is None else kwargs["input_ids"]
        self.passes.append((given.shape[0], given.shape[1]))

    def seconds(self, pictures: int) -> float:
        """Returns the floor of this many pictures and the passes so far, at rates that are measured now."""
        rate = 2 * 2048**3 / _fastest(lambda: self._matrix @ self._matrix)  # operations a second
        bandwidth = self._weights.nbytes / _fastest(lambda: self._weights @ self._vector)  # bytes a second
        reading = self._size / bandwidth
        operations = [rows * (tokens * self._of_token + self._of_head) for rows, tokens in self.passes]
        return pictures * self._of_picture / rate + sum(max(count / rate, reading) for count in operations)


@torch.inference_mode()
def _operations(call: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


def _fastest(call: Callable[[], Any]) -> float:
    return min(_seconds(call) for _ in range(3))


def _seconds(call: Callable[..., Any], *arguments: Any, **settings: Any) -> float:
    begin = time.process_time()
    call(*arguments, **settings)
    return time.process_time() - begin


class Contest:
    """Captioners that take turns.

    Args:
        checkpoints: The checkpoint in each dtype.
        exports: Exported captioners.
        randoms: Captioners of random weights.
    """

    def __init__(self, checkpoints: dict[str, Captioner], exports: dict[str, Any], randoms: dict[str, Random]) -> None:
        self.checkpoints, self.exports, self.randoms = checkpoints, exports, randoms
        self.floors = {name: Floor(captioner) for name, captioner in checkpoints.items()}

    def turn(self, photos: Sequence[bytes], beams: int, length: int) -> dict[str, float]:
        """Returns the seconds that each captioner takes for a batch of photos."""
        settings = {"num_beams": beams, "batch_size": len(photos)}
        seconds: dict[str, float] = {}
        for name, captioner in self.checkpoints.items():
            self.floors[name].passes.clear()
            seconds[name] = _seconds(captioner.caption, photos, **settings)
            seconds[f"{name}: floor"] = self.floors[name].seconds(len(photos))
            with by_transformers():
                seconds[f"{name}: by generate"] = _seconds(captioner.caption, photos, **settings)
        for name, captioner in self.exports.items():
            seconds[name] = _seconds(captioner.caption, photos, **settings)
        for name, other in self.randoms.items():
            seconds[name] = _seconds(other.caption, photos, beams, length)
        return seconds

    def compare(self, photos: Sequence[bytes], beams: int, runs: int) -> None:
        """Prints seconds a photo of each captioner, and how many times those of the first one they are."""
        first = next(iter(self.checkpoints.values()))
        tokenizer = first.processor.tokenizer
        captions = first.caption(photos, num_beams=beams, batch_size=len(photos))
        length = round(statistics.mean(len(tokenizer(caption.text).input_ids) + 1 for caption in captions))
        turns = [self.turn(photos, beams, length) for _ in range(runs)]
        print(f"batch {len(photos)}, {beams} beams, {length} tokens a caption:")
        for name in turns[0]:
            seconds = statistics.median(turn[name] for turn in turns) / len(photos)
            line = f"  {name:34} {seconds:7.3f} s a photo"
            for own in dict.fromkeys((next(iter(self.checkpoints)), name.partition(":")[0])):
                line += f", {statistics.median(turn[name] / turn[own] for turn in turns):.2f} x {own}"
            print(line, flush=True)


def start(checkpoint: Path, exports: Sequence[Path], arguments: argparse.Namespace) -> None:
    """Prints the time from the start of a process to its first caption, the peak of its memory, and sizes on disk."""
    files = sorted(Path(arguments.photos).glob("*.jpg"))[: max(arguments.batch_sizes)]
    commands = {
        f"{checkpoint.name}, {dtype}": FIRST_CAPTION.format(
            module="vlm_caption", path=str(checkpoint), options=f", dtype=__import__('torch').{dtype}"
        )
        for dtype in arguments.dtypes
    }
    for export in exports:
        commands[export.name] = FIRST_CAPTION.format(module="vlm_caption.runtime", path=str(export), options="")
    commands["import torch"] = IMPORT_TORCH
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    measured: dict[str, list[list[float]]] = {name: [] for name in commands}
    for _, (name, command) in itertools.product(range(arguments.runs), commands.items()):
        output = subprocess.run(
            [sys.executable, "-c", command + PRINT, *map(str, files)],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        measured[name].append(json.loads(output.splitlines()[-1]))
    for name, values in measured.items():
        seconds, memory = (statistics.median(column) for column in zip(*values, strict=True))
        print(f"{name}: {seconds:.2f} s to the first caption, {memory:.0f} MB at most with a batch of {len(files)}")
    for folder in (checkpoint, *exports):
        print(f"{folder.name}: {sum(file.stat().st_size for file in folder.iterdir()) / 1e6:.1f} MB on disk")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints all of it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("exports", nargs="*", type=Path, help="what `vlm-caption export` wrote")
    parser.add_argument("--checkpoint", type=Path, default=REPOSITORY / "checkpoints" / "embedded")
    parser.add_argument("--photos", default=str(REPOSITORY.parent / "shared" / "flickr8k" / "Flicker8k_Dataset"))
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--beams", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--runs", type=int, default=3, help="runs of each measurement (3)")
    parser.add_argument("--alone", action="store_true", help="without captioners of random weights")
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    checkpoints = {
        dtype: Captioner.from_pretrained(arguments.checkpoint, "cpu", getattr(torch, dtype))
        for dtype in arguments.dtypes
    }
    tokenizer = checkpoints[arguments.dtypes[0]].processor.tokenizer
    for captioner in checkpoints.values():
        captioner.confidence = None  # exports have none
    exports = {folder.name: runtime.Captioner.from_pretrained(folder, threads=1) for folder in arguments.exports}
    randoms = {} if arguments.alone else {name: build(tokenizer) for name, build in RANDOM.items()}
    contest = Contest(checkpoints, exports, randoms)
    files = sorted(Path(arguments.photos).glob("*.jpg"))
    for beams, size in itertools.product(arguments.beams, arguments.batch_sizes):
        photos = [file.read_bytes() for file in itertools.islice(itertools.cycle(files), size)]
        contest.compare(photos, beams, arguments.runs)
    start(arguments.checkpoint, arguments.exports, arguments)


if __name__ == "__main__":
    main()

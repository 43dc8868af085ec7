"""Tiny training runs on pictures of one colour each, and what they leave."""

import contextlib
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from vlm_caption import CaptionerForConditionalGeneration
from vlm_caption.training import train as training

COLOURS = ("red", "lime", "blue", "white", "black", "yellow", "magenta", "cyan")


# Weights this large make images matter: the projector alone learns to name colours.
VISION = {
    "model_type": "dinov2",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
    "initializer_range": 0.4,
}


LANGUAGE = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 96, "initializer_range": 0.4}


def write_colours(folder: Path, train_colours=COLOURS, dev_colours=COLOURS[::-1]) -> Path:
    """Writes plain pictures and a table that captions each with the name of its colour."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "captions.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "caption", "split"])
        for split, colours in (("train", train_colours), ("dev", dev_colours)):
            for colour in colours:
                Image.new("RGB", (32, 32), colour).save(folder / f"{split}_{colour}.png")
                writer.writerow([f"{split}_{colour}.png", colour, split])
    return folder / "captions.csv"


def tiny_settings(folder: Path) -> dict:
    """A run of 8 steps on the colours in the folder."""
    return {
        "model.vision": VISION,
        "model.language": LANGUAGE,
        "model.image_tokens": "patches",
        "model.image_grid": 2,
        "model.pooled_in_front": True,
        "data.path": str(folder / "captions.csv"),
        "training.output_dir": str(folder / "run"),
        "training.precision": "fp32",
        "training.batch_size": 4,
        "training.max_steps": 8,
        "training.warmup_steps": 2,
        "training.learning_rate": 1e-2,
        "training.eval_steps": 100,
        "training.save_steps": 2,
        "training.logging_steps": 1,
        "training.samples": 0,
    }


def projector(model: CaptionerForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: tensor.cpu() for name, tensor in model.core.multi_modal_projector.state_dict().items()}


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def history(folder: Path) -> list[dict]:
    """What a run with a checkpoint at its end has logged."""
    states = [json.loads(path.read_text()) for path in folder.glob("checkpoint-*/trainer_state.json")]
    return max(states, key=lambda state: state["global_step"])["log_history"]


def step_values(folder: Path, name: str = "loss") -> list[float]:
    return [entry[name] for entry in history(folder) if name in entry]


@contextlib.contextmanager
def interrupted_before(step: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The runs inside end without a word, as if killed, when they have made so many steps."""

    class Interrupted(training.TrainingLoop):
        def step(self, batches):
            if self.state.global_step == step:
                raise KeyboardInterrupt
            super().step(batches)

    with monkeypatch.context() as patch:
        patch.setattr(training, "TrainingLoop", Interrupted)
        with pytest.raises(KeyboardInterrupt):
            yield

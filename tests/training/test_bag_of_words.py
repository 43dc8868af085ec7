"""The bag-of-words loss in training: what it trains, and what it leaves as it is."""

import json

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import VISION
from tiny_runs import LANGUAGE, write_colours

from vlm_caption import ConfigError
from vlm_caption.config.run_config import RunConfig
from vlm_caption.training.sharding import check_sharding
from vlm_caption.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def run(tmp_path):
    """Makes one step from scratch with a weight of the loss. Returns the log's first loss, and the weights."""
    table = write_colours(tmp_path)

    def run(weight: float) -> tuple[float, dict[str, torch.Tensor]]:
        folder = tmp_path / f"run_{weight}"
        settings = {
            "model.vision": VISION["vit_cls"]["vision_config"],
            "model.language": LANGUAGE,
            "model.pooled_feature": "cls",
            "data.path": str(table),
            "training.output_dir": str(folder),
            "training.train_vision": "full",
            "training.train_language": "full",
            "training.precision": "fp32",
            "training.max_steps": 1,
            "training.warmup_steps": 0,
            "training.samples": 0,
            "training.bag_of_words": weight,
        }
        train(RunConfig.load(None, settings))
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return next(entry["loss"] for entry in log if "loss" in entry), load_file(folder / "model.safetensors")

    return run


def test_it_changes_what_is_learned_and_not_the_loss_that_is_logged(run):
    (loss, plain), (same_loss, changed) = run(0.0), run(2.0)
    assert loss == same_loss
    towers = [name for name in plain if "vision_tower" in name]
    assert any(not torch.equal(plain[name], changed[name]) for name in towers)


def test_a_weight_below_0_and_sharded_models_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"training\.bag_of_words must be at least 0, and -1\.0 is not"):
        RunConfig.load(None, {"training.bag_of_words": -1})
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"has no bag-of-words loss: set training\.bag_of_words to 0"):
        check_sharding(RunConfig.load(None, {"training.bag_of_words": 0.5}))

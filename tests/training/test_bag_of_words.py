"""The objective `bag_of_words`: what it trains, what it leaves as it is, and where it is refused."""

import json

import pytest
import torch
from tiny_models import VISION
from tiny_runs import LANGUAGE, write_colours

from vlm_caption import Captioner, ConfigError, load_captions
from vlm_caption.config.run_config import RunConfig
from vlm_caption.evaluation.evaluate import evaluate
from vlm_caption.evaluation.scoring import ScoringSettings
from vlm_caption.hub.facts import read_facts
from vlm_caption.training import model as training_model
from vlm_caption.training.bag_of_words import check_bag_of_words
from vlm_caption.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")

SETTINGS = {
    "model.vision": VISION["vit_cls"]["vision_config"],
    "model.language": LANGUAGE,
    "model.pooled_feature": "cls",
    "training.train_vision": "full",
    "training.train_language": "full",
    "training.precision": "fp32",
    "training.objective": "bag_of_words",
    "training.max_steps": 20,
    "training.eval_steps": 10,
    "training.warmup_steps": 0,
    "training.learning_rate": 5e-3,
}


@pytest.fixture
def run(tmp_path, monkeypatch):
    """Trains from scratch on plain colours. Returns the model, its weights before, and the log."""
    before = {}
    compose = training_model.compose

    def keep(**settings):
        model, processor = compose(**settings)
        before.update({name: tensor.clone() for name, tensor in model.state_dict().items()})
        return model, processor

    monkeypatch.setattr(training_model, "compose", keep)
    folder = tmp_path / "run"

    def run(**changes):
        settings = SETTINGS | {"data.path": str(write_colours(tmp_path)), "training.output_dir": str(folder)}
        model = train(RunConfig.load(None, settings | changes))
        log = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        return model, before, log

    return run


def test_tower_projector_and_word_embeddings_learn_and_the_blocks_stay_as_they_are(run):
    model, before, log = run()
    losses = [entry["eval_loss"] for entry in log if "eval_loss" in entry]
    assert losses[-1] < losses[0]
    same = {name for name, tensor in model.state_dict().items() if torch.equal(before[name], tensor.cpu())}
    blocks = {name for name in before if ".transformer.h." in name}
    assert blocks
    assert blocks <= same
    changed = before.keys() - same
    for part in ("core.vision_tower.", "core.multi_modal_projector.", "core.language_model.transformer.wte"):
        assert any(name.startswith(part) for name in changed), part


def test_the_dev_loss_of_each_of_several_corpora_is_logged(run, tmp_path):
    log = run(**{"data.path": [str(write_colours(tmp_path / name)) for name in "ab"]})[2]
    [*_, last] = [entry for entry in log if "eval_loss" in entry]
    parts = [value for name, value in last.items() if name.startswith("eval_loss/")]
    assert len(parts) == 2
    assert last["eval_loss"] == pytest.approx(sum(parts) / 2)


def test_the_dev_loss_of_the_card_is_that_of_captions(run, tmp_path):
    run()
    captioner = Captioner.from_pretrained(tmp_path / "run", device="cpu")
    dataset = load_captions(tmp_path, split="dev")
    measured = evaluate(captioner, dataset, generation={"max_new_tokens": 1}, scoring=ScoringSettings(metrics=[]))
    assert read_facts(tmp_path / "run")["training"]["dev_loss"] == pytest.approx(measured.loss, rel=1e-3)


def test_no_samples_are_shown_because_nothing_can_be_written_yet(run):
    assert not any("samples" in entry for entry in run()[2])


def test_captions_and_several_processes_are_refused(monkeypatch):
    with pytest.raises(ConfigError, match=r"does not train captions: set training\.eval_captions to 0"):
        check_bag_of_words(RunConfig.load(None, SETTINGS | {"training.eval_captions": 8}))
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"is for one process, and accelerate launch started several"):
        check_bag_of_words(RunConfig.load(None, SETTINGS))
    check_bag_of_words(RunConfig.load(None, SETTINGS | {"training.objective": "all"}))

"""Averaged weights: what the average is, and that it is evaluated, chosen and saved while the weights go on."""

import shutil

import pytest
import torch
from safetensors.torch import load_file
from tiny_runs import history, projector, step_values, weights

from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import CheckpointError, ConfigError
from vlm_caption.training.averaging import AVERAGE_NAME, AveragedWeights
from vlm_caption.training.sharding import check_sharding

DECAY = 0.8


@pytest.fixture
def model():
    """A frozen and a trained layer."""
    torch.manual_seed(0)
    layers = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    layers[0].requires_grad_(False)
    return layers


def test_the_average_is_the_one_made_by_hand(model):
    average = AveragedWeights(model, DECAY)
    expected = model[1].weight.detach().clone()
    for step in range(1, 60):
        with torch.no_grad():
            model[1].weight.add_(torch.randn(2, 2))
        average.update(step)
        decay = min(DECAY, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * model[1].weight.detach()
    assert DECAY < (1 + 59) / (10 + 59)  # so both decays were used
    assert average.weights.keys() == {"1.weight", "1.bias"}
    torch.testing.assert_close(average.weights["1.weight"], expected)


def test_the_model_gets_its_own_weights_back(model):
    average = AveragedWeights(model, DECAY)
    own = torch.randn(2, 2)
    with torch.no_grad():
        model[1].weight.copy_(own)
    with average.in_model():
        assert model[1].weight.equal(average.weights["1.weight"])
        assert not model[1].weight.equal(own)
    assert model[1].weight.equal(own)


def test_an_average_comes_back_from_a_checkpoint_and_a_missing_one_is_refused(model, tmp_path):
    average = AveragedWeights(model, DECAY)
    average.save(tmp_path)
    with torch.no_grad():
        model[1].weight.zero_()
    again = AveragedWeights(model, DECAY)
    again.load(tmp_path)
    assert all(again.weights[name].equal(weight) for name, weight in average.weights.items())
    (tmp_path / AVERAGE_NAME).unlink()
    with pytest.raises(CheckpointError, match="is damaged"):
        again.load(tmp_path)


@pytest.mark.usefixtures("own_cache")
class TestRuns:
    @pytest.fixture
    def averaged(self, run):
        """The model of a run that averages and evaluates once, at its end."""
        return run("averaged", ema_decay=DECAY, save_steps=1)

    def test_the_average_of_the_steps_is_saved_and_returned(self, run, averaged, tmp_path):
        run("plain", save_steps=1)
        plain, found = tmp_path / "plain", tmp_path / "averaged"
        assert step_values(found) == step_values(plain)
        last = [weights(folder / "checkpoint-8") for folder in (plain, found)]
        assert all(last[1][name].equal(tensor) for name, tensor in last[0].items())
        kept = load_file(found / "checkpoint-8" / AVERAGE_NAME)
        assert kept.keys() == {f"core.multi_modal_projector.{name}" for name in projector(averaged)}
        saved = weights(found)
        assert all(saved[name].equal(tensor) for name, tensor in kept.items())
        assert all(kept[f"core.multi_modal_projector.{name}"].equal(t) for name, t in projector(averaged).items())
        assert not any(last[1][name].equal(tensor) for name, tensor in kept.items())
        # From step to step: the checkpoints have the weights and the average before.
        before, after = (load_file(found / f"checkpoint-{step}" / AVERAGE_NAME) for step in (7, 8))
        decay = min(DECAY, (1 + 8) / (10 + 8))
        for name, tensor in after.items():
            torch.testing.assert_close(tensor, decay * before[name] + (1 - decay) * last[1][name])

    def test_the_average_is_what_is_evaluated(self, run, averaged, tmp_path):
        run("plain")
        losses = [
            [entry["eval_loss"] for entry in history(tmp_path / name) if "eval_loss" in entry]
            for name in ("plain", "averaged")
        ]
        assert len(losses[0]) == len(losses[1]) == 1
        assert losses[0] != losses[1]
        best = load_file(tmp_path / "averaged" / "checkpoint-8" / "best.safetensors")
        kept = load_file(tmp_path / "averaged" / "checkpoint-8" / AVERAGE_NAME)
        assert all(best[name].equal(tensor) for name, tensor in kept.items())

    def test_a_run_that_lost_its_end_ends_with_the_same_average_and_log(self, run, tmp_path):
        run("whole", ema_decay=DECAY, eval_steps=3)
        run("killed", ema_decay=DECAY, eval_steps=3)
        shutil.rmtree(tmp_path / "killed" / "checkpoint-8")
        (tmp_path / "killed" / "model.safetensors").unlink()
        run("killed", ema_decay=DECAY, eval_steps=3)
        for name in ("model.safetensors", f"checkpoint-8/{AVERAGE_NAME}", "checkpoint-8/best.safetensors"):
            expected, found = (load_file(tmp_path / folder / name) for folder in ("whole", "killed"))
            assert all(found[key].equal(tensor) for key, tensor in expected.items()), name
        assert step_values(tmp_path / "killed", "eval_loss") == step_values(tmp_path / "whole", "eval_loss")

    def test_a_run_taken_further_goes_on_with_its_average(self, run, tmp_path):
        run(ema_decay=DECAY)
        run(ema_decay=DECAY, max_steps=9, save_steps=1)
        before, after = (load_file(tmp_path / "run" / f"checkpoint-{step}" / AVERAGE_NAME) for step in (8, 9))
        now = weights(tmp_path / "run" / "checkpoint-9")
        decay = min(DECAY, (1 + 9) / (10 + 9))
        for name, tensor in after.items():
            torch.testing.assert_close(tensor, decay * before[name] + (1 - decay) * now[name])

    def test_a_run_cannot_begin_to_average_on_its_way(self, run):
        run(max_steps=2)
        with pytest.raises(ConfigError, match=r"training.ema_decay: None → 0\.8"):
            run(ema_decay=DECAY)


def test_averages_of_another_shape_are_refused(tmp_path):
    AveragedWeights(torch.nn.Linear(3, 1), DECAY).save(tmp_path)
    with pytest.raises(CheckpointError, match=r"is damaged \(weight has the shape \[1, 3\] and not \[1, 2\]\)"):
        AveragedWeights(torch.nn.Linear(2, 1), DECAY).load(tmp_path)


@pytest.mark.parametrize("decay", [1, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ConfigError, match=r"training\.ema_decay must be at least 0 and below 1"):
        RunConfig.load(None, {"training.ema_decay": decay})


def test_sharded_weights_are_not_averaged(monkeypatch):
    for name, value in {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=r"does not average weights: set training\.ema_decay to null"):
        check_sharding(RunConfig.load(None, {"training.ema_decay": DECAY}))

"""Runs that are killed, stopped, or stop by themselves: nothing is lost, and nothing is half-written."""

import errno
import json
import logging
import os
import signal
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from kill_training import kill_runs
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from tiny_runs import step_values, weights, write_colours

from vlm_caption.core.errors import CheckpointError, ConfigError
from vlm_caption.core.interrupts import Interrupted
from vlm_caption.training import checkpoints
from vlm_caption.training import train as training

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def at_step(monkeypatch):
    """Has something done in a step of the next runs, before its loss is taken."""

    def at_step(number: int, action):
        class Loop(training.TrainingLoop):
            def backward(self, batch, targets):
                if self.state.global_step + 1 == number:
                    action(self.model, batch)
                return super().backward(batch, targets)

        monkeypatch.setattr(training, "TrainingLoop", Loop)

    return at_step


def names(folder) -> set[str]:
    return {path.name for path in folder.glob("checkpoint*")}


def test_killed_at_random_moments_it_ends_with_the_same_weights(tmp_path):
    outcomes = list(kill_runs(tmp_path, count=3, seed=1))
    assert [outcome.equal for outcome in outcomes] == [True] * 3, outcomes
    assert any(outcome.killed for outcome in outcomes)


def test_killed_in_each_of_two_stages_it_ends_with_the_same_weights(tmp_path):
    outcomes = list(kill_runs(tmp_path, count=4, seed=2, staged=True))
    assert [outcome.equal for outcome in outcomes] == [True] * 4, outcomes
    assert any(outcome.killed for outcome in outcomes)


class TestSignals:
    @pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
    def test_a_signal_saves_a_checkpoint_and_the_run_goes_on_from_it(self, run, at_step, tmp_path, signum):
        whole = run("whole", max_steps=7)
        handler = signal.getsignal(signum)
        at_step(5, lambda model, inputs: os.kill(os.getpid(), signum))
        with pytest.raises(Interrupted) as caught:
            run(max_steps=7)
        assert caught.value.signum == signum
        assert signal.getsignal(signum) is handler
        assert names(tmp_path / "run") == {"checkpoint-4", "checkpoint-5"}
        assert not (tmp_path / "run" / "model.safetensors").exists()
        at_step(0, None)
        resumed = run(max_steps=7)
        for name, tensor in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), name
        assert step_values(tmp_path / "run") == step_values(tmp_path / "whole")

    def test_before_training_a_signal_ends_the_run_at_once(self, run, monkeypatch, tmp_path):
        monkeypatch.setattr(training, "log_parts", lambda model: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(Interrupted):
            run()
        assert not (tmp_path / "run").exists()


class TestLossThatIsNone:
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_the_batch_is_named_and_the_last_checkpoint_stays(self, run, at_step, tmp_path, accumulation):
        at_step(5, lambda model, inputs: inputs["image_features"].fill_(float("nan")))
        with pytest.raises(FloatingPointError) as caught:
            run(batch_size=2, accumulation=accumulation)
        message = str(caught.value)
        assert message.startswith("The loss is nan in step 5, on train_")
        assert message.count(".png") == 2
        assert names(tmp_path / "run") == {"checkpoint-2", "checkpoint-4"}

    def test_a_gradient_that_is_none_is_found_before_it_does_harm(self, run, at_step, tmp_path):
        def spoil(model, inputs):
            weight = model.core.multi_modal_projector.linear_1.weight
            handle = weight.register_hook(lambda gradient: handle.remove() or gradient * float("inf"))

        at_step(5, spoil)
        with pytest.raises(FloatingPointError, match=r"The gradient is (nan|inf) in step 5, on train_\w+\.png, "):
            run()
        assert names(tmp_path / "run") == {"checkpoint-2", "checkpoint-4"}


class TestDisk:
    @pytest.mark.parametrize(
        "error", [OSError(errno.ENOSPC, "No space left on device"), SafetensorError("I/O error: No space left (28)")]
    )
    def test_a_full_disk_is_told_and_the_last_checkpoint_stays(self, run, tmp_path, monkeypatch, error):
        whole = run("whole")
        save_file = checkpoints.save_file

        def full(tensors, path, *args, **kwargs):
            if (tmp_path / "run" / "checkpoint-4").exists():
                path.write_bytes(b"half")
                raise error
            save_file(tensors, path, *args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "save_file", full)
            with pytest.raises(
                ConfigError, match=r"run cannot be written to \(.*No space left.*goes on from checkpoint-4"
            ):
                run()
        assert names(tmp_path / "run") == {"checkpoint-2", "checkpoint-4", "checkpoint.partial"}
        resumed = run()
        assert names(tmp_path / "run") == {"checkpoint-6", "checkpoint-8"}
        for name, tensor in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), name

    @pytest.mark.skipif(sys.platform != "linux", reason="/proc tells what files a process maps")
    def test_a_resumed_run_holds_no_file_of_its_checkpoint(self, run, at_step, tmp_path):
        run(max_steps=4, eval_steps=2)
        held = []

        def look(model, inputs):
            maps = Path("/proc/self/maps").read_text().splitlines()
            held.extend(line for line in maps if str(tmp_path / "run" / "checkpoint-4") in line)

        at_step(5, look)
        run(max_steps=6, eval_steps=2)
        assert held == []

    def test_what_cannot_be_removed_does_not_end_a_run(self, run, tmp_path, monkeypatch):
        def still_open(folder, ignore_errors=False):
            if not ignore_errors:
                raise OSError(errno.EBUSY, "Device or resource busy")

        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, "shutil", SimpleNamespace(rmtree=still_open))
            run(max_steps=8)
        left = {"checkpoint.removed-2", "checkpoint.removed-4"}
        assert names(tmp_path / "run") == {"checkpoint-6", "checkpoint-8"} | left
        run(max_steps=8)
        assert names(tmp_path / "run") == {"checkpoint-6", "checkpoint-8"}

    def test_a_damaged_checkpoint_is_named(self, run, tmp_path):
        run(max_steps=4)
        (tmp_path / "run" / "checkpoint-4" / "optimizer.safetensors").write_bytes(b"half")
        with pytest.raises(
            CheckpointError, match=r"checkpoint-4 is damaged .* remove it, and the same command goes on"
        ):
            run(max_steps=8)

    def test_weights_of_another_shape_are_refused(self, run, tmp_path):
        run(max_steps=4)
        path = tmp_path / "run" / "checkpoint-4" / "model.safetensors"
        save_file({name: tensor.flatten()[:1].clone() for name, tensor in load_file(path).items()}, path)
        with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged \(.* has the shape \[1\] and not"):
            run(max_steps=8)

    @pytest.mark.parametrize("content", ["", '{"global_step": 4', "[]", '{"steps": 4}'])
    def test_a_damaged_state_is_named(self, run, tmp_path, content):
        run(max_steps=4)
        (tmp_path / "run" / "checkpoint-4" / "trainer_state.json").write_text(content)
        with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged"):
            run(max_steps=8)

    def test_best_weights_that_are_gone_are_missed(self, run, tmp_path):
        run(max_steps=4, eval_steps=2)
        (tmp_path / "run" / "checkpoint-4" / "best.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"checkpoint-4 is damaged \(.*best\.safetensors"):
            run(max_steps=8, eval_steps=2)

    def test_a_run_of_other_processes_is_refused(self, run, tmp_path):
        run(max_steps=2)
        path = tmp_path / "run" / "checkpoint-2" / "rng_states.json"
        path.write_text(json.dumps(json.loads(path.read_text()) * 2))
        with pytest.raises(ConfigError, match="holds a run of 2 processes, and these are 1"):
            run(max_steps=4)


class TestBest:
    """The dev pictures have the names of other colours: the better those trained on are known, the worse for them."""

    SETTINGS = {"max_steps": 40, "eval_steps": 4, "batch_size": 8, "save_steps": 15}  # noqa: RUF012

    @pytest.fixture(autouse=True)
    def wrong_names(self, run, tmp_path):
        write_colours(tmp_path)
        table = tmp_path / "captions.csv"
        header, *rows = table.read_text().splitlines()
        train_rows, dev_rows = rows[:8], rows[8:]
        colours = [row.split(",")[1] for row in dev_rows]
        wrong = [
            row.replace(f"png,{name}", f"png,{other}")
            for row, name, other in zip(dev_rows, colours, colours[4:] + colours[:4], strict=True)
        ]
        table.write_text("\n".join([header, *train_rows, *wrong]))

    def test_the_weights_with_the_lowest_dev_loss_are_what_is_saved(self, run, tmp_path, caplog):
        caplog.set_level(logging.INFO, "vlm_caption")
        run(**self.SETTINGS)
        losses = step_values(tmp_path / "run", "eval_loss")
        best = min(range(len(losses)), key=losses.__getitem__)
        assert best < len(losses) - 1
        step = 4 * (best + 1)
        told = f"Lowest dev loss: {losses[best]:.4f} nats a token, after step {step} of 40; these weights are kept"
        assert told in caplog.messages
        assert f"Dev loss: {losses[best]:.4f} nats a token" in caplog.messages
        saved = weights(tmp_path / "run")
        kept = load_file(tmp_path / "run" / "checkpoint-40" / "best.safetensors")
        assert all(torch.equal(saved[name], tensor) for name, tensor in kept.items())
        assert json.loads((tmp_path / "run" / "model_card.json").read_text())["training"]["best_step"] == step

    def test_patience_ends_a_run_for_good(self, run, tmp_path, caplog):
        caplog.set_level(logging.INFO, "vlm_caption")
        run(**self.SETTINGS, patience=2)
        assert any("the last 2 evaluations were no better (training.patience)" in line for line in caplog.messages)
        losses = step_values(tmp_path / "run", "eval_loss")
        assert len(losses) < 10
        assert min(losses) == losses[-3]
        before = weights(tmp_path / "run")
        run(**self.SETTINGS, patience=2)
        assert len(step_values(tmp_path / "run", "eval_loss")) == len(losses)
        assert all(torch.equal(tensor, before[name]) for name, tensor in weights(tmp_path / "run").items())

    def test_with_more_patience_it_goes_on(self, run, tmp_path):
        run(**self.SETTINGS, patience=1)
        run(**self.SETTINGS, patience=0)
        assert len(step_values(tmp_path / "run", "eval_loss")) == 10


def test_a_run_that_ended_inside_an_epoch_makes_no_step_more(run, tmp_path):
    run(max_steps=7)
    run(max_steps=7)
    assert names(tmp_path / "run") == {"checkpoint-6", "checkpoint-7"}


def test_other_intervals_hold_from_the_checkpoint_on(run, tmp_path):
    run(max_steps=4, eval_steps=4)
    run(max_steps=8, eval_steps=1)
    assert len(step_values(tmp_path / "run", "eval_loss")) == 1 + 4


def test_the_dev_loss_weighs_tokens_alike_in_batches_of_any_size(run, tmp_path):
    table = tmp_path / "captions.csv"
    table.write_text(table.read_text().replace("dev_red.png,red", "dev_red.png,a rather long caption in red"))
    losses = []
    for size in (3, 8):
        run(f"size-{size}", max_steps=1, eval_steps=1, learning_rate=0.0, batch_size=size)
        losses += step_values(tmp_path / f"size-{size}", "eval_loss")
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)

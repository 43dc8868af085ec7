"""Training on several corpora at once."""

import json
import shutil

import pytest
import yaml
from tiny_runs import COLOURS, history, interrupted_before, tiny_settings, write_colours

from vlm_caption.cli.main import run
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.training import train as training
from vlm_caption.training.data import CaptionSplits
from vlm_caption.training.train import train


@pytest.fixture
def settings(tmp_path):
    """A run on 8 images of one corpus and half of the 4 of another one, in 2 steps an epoch."""
    write_colours(tmp_path / "big")
    write_colours(tmp_path / "small", COLOURS[:4], COLOURS[:2])
    (tmp_path / "small" / "captions.csv").rename(tmp_path / "small" / "metadata.csv")
    table = (tmp_path / "small" / "metadata.csv").read_text().replace("image,", "file_name,")
    (tmp_path / "small" / "metadata.csv").write_text(table)
    own = {
        "data.path": [str(tmp_path / "big"), str(tmp_path / "small")],
        "data.weights": [1, 0.5],
        "training.batch_size": 5,
        "training.max_steps": 4,
    }
    return tiny_settings(tmp_path) | own


@pytest.fixture
def seen(monkeypatch) -> list[list[str]]:
    """The images of each step of a run."""
    steps = []

    class Loop(training.TrainingLoop):
        def step(self, batches):
            rows = [row for batch in batches for row in batch["rows"].tolist()]
            steps.append([self.data.train[row]["image"] for row in rows])
            super().step(batches)

    monkeypatch.setattr(training, "TrainingLoop", Loop)
    return steps


def test_an_epoch_has_as_much_of_each_as_its_weight_says(settings, seen):
    train(RunConfig.load(None, settings))
    epochs = [seen[0] + seen[1], seen[2] + seen[3]]
    for epoch in epochs:
        assert len([image for image in epoch if "/big/" in image]) == len(set(epoch)) - 2 == 8
        assert len([image for image in epoch if "/small/" in image]) == 2


def test_the_dev_loss_of_each_is_logged_and_that_of_all_is_their_mean(settings, tmp_path):
    train(RunConfig.load(None, settings))
    evaluation = next(entry for entry in history(tmp_path / "run") if "eval_loss" in entry)
    losses = [evaluation["eval_loss/big"], evaluation["eval_loss/small"]]
    assert min(losses) < evaluation["eval_loss"] < max(losses)


def test_facts_and_card_name_each_corpus(settings, tmp_path):
    train(RunConfig.load(None, settings))
    facts = json.loads((tmp_path / "run" / "model_card.json").read_text())["training"]
    assert facts["data"]["name"] == "big, small"
    assert facts["data"]["train"]["images"] == 12
    assert facts["corpora"] == [
        {"name": "big", "images": 8, "images_an_epoch": 8, "dev_images": 8},
        {"name": "small", "images": 4, "images_an_epoch": 2, "dev_images": 2},
    ]
    assert facts["images_seen"] == 20
    card = (tmp_path / "run" / "README.md").read_text()
    assert "  - `small`: 4 images, 2 in each epoch; 2 images to monitor the loss." in card


def test_replay_counts_the_images_of_an_epoch(settings, tmp_path, seen):
    other = str(write_colours(tmp_path / "other"))
    changes = {"data.replay": [other], "data.replay_share": 0.2, "training.batch_size": 13, "training.max_steps": 1}
    assert CaptionSplits(RunConfig.load(None, settings | changes)).replayed == 2
    train(RunConfig.load(None, settings | changes))
    assert sum("/other/" in image for image in seen[0]) == 2
    assert len(seen[0]) == 12


def test_a_stopped_run_resumes_with_the_same_images_and_not_with_others(settings, tmp_path, monkeypatch, seen):
    train(RunConfig.load(None, settings | {"training.output_dir": str(tmp_path / "whole")}))
    whole = list(seen)
    seen.clear()

    with interrupted_before(2, monkeypatch):
        train(RunConfig.load(None, settings))
    with pytest.raises(ConfigError, match=r"data.weights: \[1.0, 0.5\] → \[1.0, 1.0\]"):
        train(RunConfig.load(None, settings | {"data.weights": [1, 1]}))
    train(RunConfig.load(None, settings))
    assert seen == whole


def test_commands_take_lists(settings, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = tmp_path / "configs" / "mine.yaml"
    config.parent.mkdir()
    sections: dict = {}
    for name, value in settings.items():
        section, _, attribute = name.partition(".")
        sections.setdefault(section, {})[attribute] = value
    del sections["data"]["weights"]
    config.write_text(yaml.safe_dump(sections))
    both = ["--config", str(config), "--data.path", "[big, small]"]
    assert run("train", [*both, "--weights", "[1, 2]", "--max-steps", "1"], "vlm-caption train") == 0
    saved = RunConfig.load(tmp_path / "run" / "run_config.yaml").data
    assert (saved.path, saved.weights) == (["big", "small"], [1.0, 2.0])
    assert run("cache", both, "vlm-caption cache") == 0
    assert "cached: train 12, dev 10 images" in capsys.readouterr().out
    assert run("evaluate", ["--checkpoint", "run", "--json"], "vlm-caption evaluate") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 10
    assert run("evaluate", ["--checkpoint", "run", "--data.path", "small", "--json"], "vlm-caption evaluate") == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1])["images"] == 2
    shutil.rmtree(tmp_path / "run")
    assert run("inspect", ["big", "small"], "vlm-caption inspect") == 0
    text = capsys.readouterr().out
    assert "big, small (table, imagefolder)" in text
    assert """--data.path '["big", "small"]'""" in text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.path", "[]"], "data.path is an empty list"),
        (["--data.path", "[a, a]"], "data.path names a twice"),
        (["--data.path", "[a, '']"], r"data.path[1] is empty"),
        (["--data.path", "[a, [b]]"], "data.path[1] must be str, and ['b'] is not."),
        (["--data.path", "[a, b]", "--weights", "[1, 0]"], "data.weights must be numbers above 0, and 0 is not"),
        (["--data.path", "[a, b]", "--weights", "[1, x]"], "data.weights[1] must be float, and 'x' is not."),
        (["--data.path", "[a, b]", "--weights", "0.5"], "data.weights must be list|null, and 0.5 is not."),
        (["--data.path", "[nowhere, b]"], "nowhere: there is no such file or folder"),
    ],
)
def test_wrong_lists_are_refused_in_a_sentence(options, message, capsys, tmp_path):
    assert run("train", [*options, "--output-dir", str(tmp_path / "run")], "vlm-caption train") == 2
    assert message in capsys.readouterr().err

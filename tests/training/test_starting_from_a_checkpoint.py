"""Runs that start from a checkpoint: they begin where it ended, and say what they cannot change."""

import itertools
import json
import logging

import pytest
import torch
from tiny_models import save_language_model, save_vision_tower
from tiny_runs import COLOURS, history, interrupted_before, projector, tiny_settings, weights, write_colours

from vlm_caption import Captioner
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import CheckpointError, ConfigError, DataError
from vlm_caption.model.adapters import has_adapter, plain_name
from vlm_caption.towers import precision as hardware
from vlm_caption.training import model as training_model
from vlm_caption.training import train as training
from vlm_caption.training.data import CaptionSplits
from vlm_caption.training.train import train

pytestmark = pytest.mark.usefixtures("own_cache")

PROMPT = "This is "


@pytest.fixture
def parent(tmp_path):
    """The folder of a bridge between two saved towers, with a prompt and generation settings of its own."""
    write_colours(tmp_path)
    towers = {
        "model.vision": save_vision_tower(tmp_path / "vision"),
        "model.language": save_language_model(tmp_path / "language"),
    }
    own = {
        "training.output_dir": str(tmp_path / "parent"),
        "data.prompt": PROMPT,
        "generation.num_beams": 2,
        "generation.max_new_tokens": 7,
    }
    train(RunConfig.load(None, tiny_settings(tmp_path) | towers | own))
    return tmp_path / "parent"


def child_settings(parent, **changes) -> dict:
    settings = {name: value for name, value in tiny_settings(parent.parent).items() if not name.startswith("model.")}
    own = {"model.init_from": str(parent), "training.output_dir": str(parent.parent / "child")}
    return settings | own | changes


@pytest.fixture
def start(parent):
    return lambda **changes: train(RunConfig.load(None, child_settings(parent, **changes)))


def captions(folder, pictures) -> list[str]:
    return [caption.text for caption in Captioner.from_pretrained(folder, device="cpu").caption(pictures)]


def test_a_child_begins_with_its_parents_captions(start, parent, tmp_path):
    start(**{"training.max_steps": 1, "training.learning_rate": 0.0})
    pictures = sorted(tmp_path.glob("dev_*.png"))
    expected = captions(parent, pictures)
    assert len(set(expected)) > 1
    assert captions(tmp_path / "child", pictures) == expected


def test_a_child_trains_the_parents_projector(start, parent, tmp_path):
    before = weights(parent)
    model = start(**{"training.learning_rate": 1e-4})
    for name, tensor in projector(model).items():
        moved = (tensor - before[f"core.multi_modal_projector.{name}"]).abs().max()
        assert 0 < moved < 5e-3


def test_prompt_and_generation_settings_are_the_parents_unless_they_are_given(start, tmp_path):
    start(**{"training.max_steps": 1, "generation.max_new_tokens": 9})
    captioner = Captioner.from_pretrained(tmp_path / "child", device="cpu")
    own = captioner.model.generation_config
    assert (captioner.processor.prompt, own.num_beams, own.max_new_tokens) == (PROMPT, 2, 9)
    start(**{"training.max_steps": 1, "data.prompt": "", "training.resume": False})
    assert Captioner.from_pretrained(tmp_path / "child", device="cpu").processor.prompt == ""


def test_facts_and_card_name_the_parent_and_its_data(start, parent, tmp_path):
    start(**{"training.max_steps": 1})
    facts = json.loads((tmp_path / "child" / "model_card.json").read_text())["training"]["parent"]
    own = json.loads((parent / "model_card.json").read_text())
    assert (facts["name"], facts["weights"], facts["data"]) == ("parent", own["weights"], own["training"]["data"])
    card = (tmp_path / "child" / "README.md").read_text()
    assert "- Started from `parent` (weights `sha256:" in card
    assert f"was trained on `{tmp_path.name}`, split train: 8 images with 8 captions." in card


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        (
            {"model.projector": "linear"},
            r"^model\.projector is 'linear', and the checkpoint .* has 'mlp', which cannot",
        ),
        ({"model.image_tokens": "all"}, r"^model\.image_tokens is 'all'"),
        ({"model.language": "openai-community/gpt2"}, r"^model\.language is 'openai-community/gpt2'"),
        ({"model.vision": {"model_type": "vit"}}, r"^model\.vision is "),
    ],
)
def test_another_model_is_refused(parent, tmp_path, changes, sentence):
    with pytest.raises(ConfigError, match=sentence):
        train(RunConfig.load(None, child_settings(parent, **changes)))
    assert not (tmp_path / "child").exists()


def test_a_layer_prefix_is_added_and_trained_and_the_parent_is_still_known(start, parent, tmp_path):
    model = start(**{"model.layer_prefix_rank": 2, "training.max_steps": 2, "training.learning_rate": 1e-2})
    assert model.config.layer_prefix_rank == 2
    child = Captioner.from_pretrained(tmp_path / "child", device="cpu").model
    assert child.core.layer_prefix.up.abs().max() > 0
    own = json.loads((parent / "model_card.json").read_text())
    facts = json.loads((tmp_path / "child" / "model_card.json").read_text())["training"]["parent"]
    assert (facts["weights"], facts["data"]) == (own["weights"], own["training"]["data"])
    again = {"model.init_from": str(tmp_path / "child"), "training.output_dir": str(tmp_path / "again")}
    with pytest.raises(ConfigError, match=r"model\.layer_prefix_rank is 3, and the checkpoint .* has 2, which cannot"):
        start(**again, **{"model.layer_prefix_rank": 3})
    with pytest.raises(ConfigError, match=r"model\.layer_prefix_rank must be at least 1, got 0"):
        start(**{"model.layer_prefix_rank": 0, "training.output_dir": str(tmp_path / "none")})


def test_a_setting_that_the_parent_has_too_may_be_given(start):
    start(**{"model.projector": "mlp", "model.image_tokens": "patches", "training.max_steps": 1})


def test_the_default_of_a_setting_is_refused_if_it_is_given(start):
    with pytest.raises(ConfigError, match=r"model\.image_tokens is 'pooled', and the checkpoint .* has 'patches'"):
        start(**{"model.image_tokens": "pooled"})


def test_the_parents_folder_is_never_overwritten(start, parent):
    before = weights(parent)
    inside = sorted(parent.glob("checkpoint-*"))[-1]
    for settings in ({}, {"model.init_from": str(inside), "training.resume": False}):
        with pytest.raises(ConfigError, match=r"is in .* choose another"):
            start(**{"training.output_dir": str(parent)} | settings)
    assert inside.exists()
    assert all(torch.equal(tensor, before[name]) for name, tensor in weights(parent).items())


def test_a_parent_that_is_not_there_is_refused(start, tmp_path):
    with pytest.raises(CheckpointError, match="There is no checkpoint"):
        start(**{"model.init_from": str(tmp_path / "nowhere")})


def test_a_stopped_child_resumes_and_ends_with_the_same_weights(start, tmp_path, monkeypatch):
    whole = start()

    again = {"training.output_dir": str(tmp_path / "again")}
    with interrupted_before(5, monkeypatch):
        start(**again)
    resumed = start(**again)
    for name, tensor in projector(whole).items():
        assert torch.equal(projector(resumed)[name], tensor), name


def test_a_childs_own_settings_train_it_again(start, tmp_path):
    start(**{"training.max_steps": 1})
    train(RunConfig.load(tmp_path / "child" / "run_config.yaml", {"training.output_dir": str(tmp_path / "twin")}))
    assert all(torch.equal(t, weights(tmp_path / "twin")[n]) for n, t in weights(tmp_path / "child").items())


def test_a_full_checkpoint_can_be_started_from(start, parent, tmp_path):
    captioner = Captioner.from_pretrained(parent, device="cpu")
    captioner.model.save_pretrained(tmp_path / "full", full=True)
    captioner.processor.save_pretrained(tmp_path / "full")
    start(**{"model.init_from": str(tmp_path / "full"), "training.max_steps": 1, "training.learning_rate": 0.0})
    pictures = sorted(tmp_path.glob("dev_*.png"))
    assert captions(tmp_path / "child", pictures) == captions(parent, pictures)


@pytest.mark.parametrize(
    ("policy", "stays"), [("frozen", True), ({"policy": "lora", "rank": 2}, True), ("full", False)]
)
def test_an_adapter_of_the_parent_is_kept_or_merged(start, tmp_path, policy, stays):
    start(**{"training.train_language": {"policy": "lora", "rank": 2}})
    middle = {"model.init_from": str(tmp_path / "child"), "training.output_dir": str(tmp_path / "grandchild")}
    still = {"training.max_steps": 1, "training.learning_rate": 0.0}
    model = start(**middle, **still, **{"training.train_language": policy})
    assert has_adapter(model.core.language_model) == stays
    pictures = sorted(tmp_path.glob("dev_*.png"))
    assert captions(tmp_path / "grandchild", pictures) == captions(tmp_path / "child", pictures)


def test_an_adapter_that_a_later_stage_replaces_is_merged_in_float32(start, tmp_path, monkeypatch):
    start(**{"training.train_language": {"policy": "lora", "rank": 2}})
    expected = Captioner.from_pretrained(tmp_path / "child", device="cpu").model
    expected.merge_adapters()
    for module in (hardware, training, training_model):
        monkeypatch.setattr(module, "use_bf16", lambda precision: True)
    stages = [{"name": "a", "max_steps": 1}, {"name": "b", "max_steps": 1}]
    stages[1]["train_language"] = {"policy": "lora", "rank": 3}
    grandchild = RunConfig.load(
        None,
        child_settings(tmp_path / "parent")
        | {
            "model.init_from": str(tmp_path / "child"),
            "training.output_dir": str(tmp_path / "grandchild"),
            "training.learning_rate": 0.0,
        },
    )
    grandchild.stages = stages
    model = train(grandchild)
    own = {plain_name(name): tensor for name, tensor in model.core.language_model.state_dict().items()}
    for name, tensor in expected.core.language_model.state_dict().items():
        torch.testing.assert_close(own[name], tensor, rtol=1e-6, atol=1e-7, msg=name)


class TestGoingOn:
    """A finished run that is taken further, or is given other settings."""

    def test_more_steps_have_a_schedule_without_a_zero_or_a_jump(self, parent, tmp_path, caplog):
        caplog.set_level(logging.INFO, "vlm_caption")
        settings = child_settings(parent) | {"training.warmup_steps": 2}
        train(RunConfig.load(None, settings))
        train(RunConfig.load(None, settings | {"training.max_steps": 30}))
        assert any("was finished after 8 steps: it goes on to step 30" in message for message in caplog.messages)
        rates = [entry["learning_rate"] for entry in history(tmp_path / "child") if "loss" in entry]
        assert len(rates) == 30
        later = rates[8:]
        assert min(later) > 0
        assert max(later) == pytest.approx(1e-2)
        assert max(abs(one - next_) for one, next_ in itertools.pairwise(later)) < 0.4e-2

    def test_a_run_that_was_taken_further_resumes_there(self, parent, tmp_path, monkeypatch):
        def run(name, steps):
            changes = {"training.output_dir": str(tmp_path / name), "training.max_steps": steps}
            return train(RunConfig.load(None, child_settings(parent, **changes)))

        run("whole", 4)
        whole = run("whole", 12)

        run("stopped", 4)
        with interrupted_before(9, monkeypatch):
            run("stopped", 12)
        resumed = run("stopped", 12)
        for name, tensor in projector(whole).items():
            assert torch.equal(projector(resumed)[name], tensor), name

    def test_another_learning_rate_is_refused_with_the_way_to_go_on(self, parent):
        settings = tiny_settings(parent.parent) | {"training.output_dir": str(parent), "training.learning_rate": 1e-4}
        with pytest.raises(ConfigError, match=r"The run is finished: .* add --init-from .*parent\.$"):
            train(RunConfig.load(None, settings))


class TestReplay:
    """Images of another corpus that are mixed into each epoch."""

    @pytest.fixture
    def settings(self, tmp_path):
        write_colours(tmp_path / "mine", COLOURS[:4])
        other = write_colours(tmp_path / "other")
        own = {"data.replay": str(other), "data.replay_share": 0.5, "training.batch_size": 2}
        return tiny_settings(tmp_path / "mine") | own

    @pytest.fixture
    def seen(self, monkeypatch) -> list[set[str]]:
        """The images of each step of a run."""
        steps = []

        class Loop(training.TrainingLoop):
            def step(self, batches):
                rows = [row for batch in batches for row in batch["rows"].tolist()]
                steps.append({self.data.train[row]["image"] for row in rows})
                super().step(batches)

        monkeypatch.setattr(training, "TrainingLoop", Loop)
        return steps

    def test_an_epoch_has_all_own_images_and_others_that_change(self, settings, seen, tmp_path):
        train(RunConfig.load(None, settings))
        epochs = [set().union(*seen[:4]), set().union(*seen[4:])]
        own = {str(tmp_path / "mine" / f"train_{colour}.png") for colour in COLOURS[:4]}
        replayed = [epoch - own for epoch in epochs]
        assert all(own <= epoch for epoch in epochs)
        assert [len(images) for images in replayed] == [4, 4]
        assert all("/other/train_" in image for images in replayed for image in images)
        assert replayed[0] != replayed[1]

    def test_missing_images_of_the_other_corpus_are_a_share_of_all(self, settings, tmp_path):
        for picture in sorted((tmp_path / "other").glob("train_*.png"))[:2]:
            picture.unlink()
        splits = CaptionSplits(
            RunConfig.load(None, settings | {"data.on_bad_image": "skip", "data.max_bad_share": 0.2})
        )
        assert len(splits.bad.reasons) == 2
        assert len(splits.replay) > 0

    def test_the_other_corpus_may_call_its_training_split_by_its_usual_name(self, settings, tmp_path):
        table = tmp_path / "mine" / "captions.csv"
        table.write_text(table.read_text().replace(",train\n", ",mine\n").replace(",train\r\n", ",mine\r\n"))
        splits = CaptionSplits(RunConfig.load(None, settings | {"data.train_split": "mine"}))
        assert len(splits.replay) == 8

    def test_a_corpus_that_needs_settings_of_its_own_is_refused_with_what_to_do(self, settings, tmp_path):
        table = tmp_path / "other" / "captions.csv"
        table.write_text(table.read_text().replace("caption", "words"))
        with pytest.raises(
            DataError, match=r"data.replay: .*no caption column.* are those of data.path: .*save_to_disk"
        ):
            CaptionSplits(RunConfig.load(None, settings))

    def test_facts_log_and_card_tell_what_was_cut_and_left_out(self, settings, tmp_path, caplog):
        caplog.set_level("INFO", "vlm_caption")
        (tmp_path / "mine" / "train_red.png").write_text("no picture")
        options = {"data.on_bad_image": "skip", "data.max_bad_share": 0.5, "data.max_caption_tokens": 5}
        train(RunConfig.load(None, settings | options | {"training.max_steps": 1}))
        facts = json.loads((tmp_path / "mine" / "run" / "model_card.json").read_text())["training"]
        assert (facts["cut_captions"], facts["images_left_out"]) == (1, 1)  # "white" has 5 letters and no room to end
        assert any("1 of the 4 captions to train on are cut" in message for message in caplog.messages)
        card = (tmp_path / "mine" / "run" / "README.md").read_text()
        assert "- 1 captions were cut at 5 tokens.\n- 1 images were left out" in card

    def test_facts_and_card_name_the_replayed_corpus(self, settings, tmp_path):
        train(RunConfig.load(None, settings | {"training.max_steps": 1}))
        facts = json.loads((tmp_path / "mine" / "run" / "model_card.json").read_text())["training"]
        assert facts["replay"] == {"name": "other", "images_an_epoch": 4}
        assert facts["data"]["train"]["images"] == 4
        assert "4 images of `other` in each epoch" in (tmp_path / "mine" / "run" / "README.md").read_text()

    def test_a_stopped_run_resumes_with_the_same_images(self, settings, tmp_path, monkeypatch):
        whole = train(RunConfig.load(None, settings | {"training.output_dir": str(tmp_path / "whole")}))

        with interrupted_before(5, monkeypatch):
            train(RunConfig.load(None, settings))
        resumed = train(RunConfig.load(None, settings))
        for name, tensor in projector(whole).items():
            assert torch.equal(projector(resumed)[name], tensor), name

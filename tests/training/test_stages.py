"""Runs of several stages: what each trains, how fast, what is left, and how a run is taken up again."""

import json
import logging
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from tiny_models import save_language_model, save_vision_tower, tiny_model
from tiny_runs import LANGUAGE, VISION, tiny_settings, weights, write_colours

from vlm_caption import CaptionerForConditionalGeneration
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.model.adapters import is_adapter
from vlm_caption.model.freezing import ModulePolicy, module_of, set_policies
from vlm_caption.towers import precision as hardware
from vlm_caption.towers.precision import hold_frozen
from vlm_caption.training import loop as training_loop
from vlm_caption.training import model as training_model
from vlm_caption.training import optimizer as optimizers
from vlm_caption.training import train as training
from vlm_caption.training.metrics_log import read_metrics
from vlm_caption.training.stages import plan_stages
from vlm_caption.training.train import train

STAGES = [
    {"name": "align", "max_steps": 3},
    {
        "name": "tune",
        "max_steps": 4,
        "train_vision": {"policy": "last_n", "layers": 1, "learning_rate": 1e-3},
        "train_language": {"policy": "lora", "rank": 2, "learning_rate": 5e-3, "weight_decay": 0.1},
    },
]


pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> tuple[str, str]:
    root = tmp_path_factory.mktemp("towers")
    return save_vision_tower(root / "vision", "dinov2"), save_language_model(root / "language")


def config_of(folder: Path, stages: list[dict], **changes) -> RunConfig:
    """A config of the colours in the folder, through a file as a user has it."""
    sections: dict = {"stages": stages}
    for name, value in (tiny_settings(folder) | {"training.save_steps": 1} | changes).items():
        section, _, attribute = name.partition(".")
        sections.setdefault(section, {})[attribute] = value
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(sections))
    return RunConfig.load(path)


@pytest.fixture
def run(tmp_path, towers):
    write_colours(tmp_path)

    def run(output_dir: str = "run", stages: list[dict] = STAGES, **changes):
        settings = {"model.vision": towers[0], "model.language": towers[1]}
        settings |= {"training.output_dir": str(tmp_path / output_dir)} | changes
        return train(config_of(tmp_path, stages, **settings))

    return run


def test_each_stage_trains_its_own_and_leaves_a_bridge_of_it(run, tmp_path, caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    model = run()
    first, last = load_file(tmp_path / "run/stage-1-align/model.safetensors"), weights(tmp_path / "run")
    assert {module_of(name) for name in first} == {"projector"}
    assert {module_of(name) for name in last} == {"vision", "projector", "language"}
    assert all(is_adapter(name) for name in last if module_of(name) == "language")
    vision = {name for name in last if module_of(name) == "vision"}
    assert vision == {f"core.{name}" for name in model.config.trained_weights}
    assert all(".layer.1." in name or "vision_tower.layernorm." in name for name in vision)
    loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path / "run")
    for name, tensor in model.state_dict().items():
        assert loaded.state_dict()[name].equal(tensor), name
    # Told by name and count.
    assert [line for line in caplog.messages if line.startswith("Stage ")] == [
        "Stage 1 of 2: align",
        "Stage 2 of 2: tune",
    ]
    adapters = [p for name, p in model.named_parameters() if "lora_A" in name and "c_attn" in name]
    names = "transformer.h.*.attn.c_attn.lora_A.default.weight"
    assert f"  trained: language_model.{names}  2 of {sum(p.numel() for p in adapters)} parameters" in caplog.messages
    # The first stage's optimiser is not needed any more.
    assert list((tmp_path / "run/stage-1-align").glob("checkpoint-*")) == []
    assert [path.name for path in sorted((tmp_path / "run/stage-2-tune").glob("checkpoint-*"))] == [
        "checkpoint-3",
        "checkpoint-4",
    ]
    facts = json.loads((tmp_path / "run/model_card.json").read_text())["training"]
    assert list(facts["by_stage"]) == ["align", "tune"]
    assert facts["by_stage"]["align"] == {"trained": {"projector": "trained"}, "learning_rates": {"projector": 1e-2}}
    assert facts["learning_rates"] == {"vision": 1e-3, "language": 5e-3}
    card = (tmp_path / "run/README.md").read_text()
    assert "- Stages: align (projector trained, learning rate 0.01); tune (vision frozen but for its last 1 b" in card
    assert "parameters below are of the last of them, tune; the time is that of all together." in card
    assert "learning rate 0.01 (vision 0.001, language 0.005)" in card
    assert facts["trained"]["language"] == "frozen beside a trained LoRA adapter of rank 2"


def test_modules_have_rates_of_their_own_and_norms_do_not_decay(run, monkeypatch, tmp_path):
    groups = {}

    def create_optimizer(model, rates):
        optimizer = optimizers.create_optimizer(model, rates)
        names = {id(p): name for name, p in model.named_parameters()}
        for group in optimizer.param_groups:
            groups.update({names[id(p)]: (group["lr"], group["weight_decay"]) for p in group["params"]})
        assert groups.keys() == {name for name, p in model.named_parameters() if p.requires_grad}
        return optimizer

    monkeypatch.setattr(training_loop, "create_optimizer", create_optimizer)
    run(stages=STAGES[1:], **{"training.weight_decay": 0.01})
    expected = {"vision": (1e-3, 0.01), "projector": (1e-2, 0.01), "language": (5e-3, 0.1)}
    for name, (rate, decay) in groups.items():
        is_flat = name.endswith("bias") or "norm" in name
        assert (rate, decay) == (expected[module_of(name)][0], 0.0 if is_flat else expected[module_of(name)][1]), name
    assert {module_of(name) for name in groups} == {"vision", "projector", "language"}
    rates = [entry.get("learning_rate", 0) for entry in read_metrics(tmp_path / "run/stage-1-tune")]
    assert max(rates) == 1e-2  # the projector's is what is logged


@pytest.fixture
def stop_at(monkeypatch):
    """Ends the next run in a step of one of its stages."""

    def stop_at(stage: str, step: int, run, **changes):
        class Loop(training.TrainingLoop):
            def step(self, batches):
                if stage in self.stage.folder.name and self.state.global_step + 1 == step:
                    raise KeyboardInterrupt  # as a kill would: without a word to the run
                super().step(batches)

        with monkeypatch.context() as patch:
            patch.setattr(training, "TrainingLoop", Loop)
            with pytest.raises(KeyboardInterrupt):
                run(**changes)

    return stop_at


def test_stopped_in_each_stage_it_ends_with_the_same_weights(run, stop_at, tmp_path, caplog):
    changes = {"data.captions_per_image": "sample", "training.eval_steps": 2}
    whole = run("whole", **changes)
    stop_at("align", 2, run, output_dir="run", **changes)
    stop_at("tune", 1, run, output_dir="run", **changes)
    stop_at("tune", 4, run, output_dir="run", **changes)
    caplog.set_level(logging.INFO, "vlm_caption")
    resumed = run("run", **changes)
    assert any(line.startswith("Stage 1 of 2, align, is finished: ") for line in caplog.messages)
    assert any(line.endswith("stage-2-tune/checkpoint-3") for line in caplog.messages)
    for name, tensor in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(tensor), name


def test_towers_trained_and_merged_on_the_way_come_back_as_well(run, stop_at):
    stages = [
        {"name": "one", "max_steps": 2, "train_language": {"policy": "lora", "rank": 2}},
        {"name": "two", "max_steps": 2, "train_language": "full", "train_projector": "frozen"},
        {"name": "three", "max_steps": 2, "train_language": {"policy": "lora", "rank": 3}},
    ]
    changes = {"stages": stages, "model.vision": VISION, "model.language": LANGUAGE}
    whole = run("whole", **changes)
    for stage in ("two", "three"):
        stop_at(stage, 2, run, output_dir="run", **changes)
    resumed = run("run", **changes)
    for name, tensor in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(tensor), name


def test_a_finished_stage_is_not_run_again_and_stages_can_be_added(run, tmp_path):
    run(stages=STAGES[:1])
    first = (tmp_path / "run/stage-1-align/checkpoint-3/optimizer.safetensors").stat().st_mtime_ns
    assert first
    run(stages=STAGES)
    result = (tmp_path / "run/stage-1-align/model.safetensors").stat().st_mtime_ns
    run(stages=[*STAGES, {"name": "more", "max_steps": 1}])
    assert (tmp_path / "run/stage-1-align/model.safetensors").stat().st_mtime_ns == result
    assert (tmp_path / "run/stage-3-more/checkpoint-1").is_dir()


def test_a_changed_stage_is_refused_with_the_difference(run):
    run(stages=STAGES[:1])
    with pytest.raises(ConfigError, match=r"another config \(stages\.align\.learning_rate: 'none' → 0.5\): choose"):
        run(stages=[STAGES[0] | {"learning_rate": 0.5}])
    with pytest.raises(ConfigError, match=r"another config \(stages: \['align'\] → \['tune'\]\)"):
        run(stages=STAGES[1:])
    run(stages=STAGES[1:], **{"training.resume": False})


def test_how_far_a_finished_stage_went_is_fixed_and_the_last_one_can_be_taken_further(run, tmp_path):
    run()
    with pytest.raises(ConfigError, match=r"\(stages\.align\.max_steps, of a finished stage: 3 → 5\): choose"):
        run(stages=[STAGES[0] | {"max_steps": 5}, STAGES[1]])
    with pytest.raises(ConfigError, match=r"\(stages\.align\.epochs, of a finished stage: 3\.0 → 4\.0\): choose"):
        run(**{"training.epochs": 4.0})  # which the stages have from the training
    assert "epochs: 3.0" in (tmp_path / "run/run_config.yaml").read_text()
    run(stages=[STAGES[0], STAGES[1] | {"max_steps": 5}])
    assert (tmp_path / "run/stage-2-tune/checkpoint-5").is_dir()


def test_a_fresh_start_leaves_no_stage_of_the_run_before(run, tmp_path):
    run(stages=[*STAGES[:1], {"name": "old", "max_steps": 1}])
    run(stages=STAGES, **{"training.resume": False})
    assert {path.name for path in (tmp_path / "run").glob("stage-*")} == {"stage-1-align", "stage-2-tune"}


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        (
            [{"name": "a", "train_vision": {"policy": "last_n", "layers": 9}}],
            "The stage a: vision: layers: Dinov2M",
        ),
        (
            [{"name": "a", "train_language": {"policy": "lora", "targets": ["q_proj"]}}],
            "The stage a: language: targets",
        ),
        (
            [{"name": "a", "train_projector": "frozen"}],
            "The stage a trains nothing: vision, projector and",
        ),
    ],
)
def test_a_stage_that_does_not_fit_the_model_is_refused_before_the_first_is_trained(run, tmp_path, stages, sentence):
    with pytest.raises(ConfigError, match=sentence):
        run(stages=[STAGES[0], *stages])
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ("align", "stages must be a list of mappings"),
        ([{"epochs": 1}], r"stages\[1\]: a stage needs a name of letters, digits, _ and -, and None is not one"),
        ([{"name": "a/b"}], r"stages\[1\]: a stage needs a name .* 'a/b' is not one"),
        ([{"name": "a"}, {"name": "a"}], r"stages\[2\]: another stage is called 'a' too"),
        ([{"name": "a", "epoch": 1}], r"stages\[1\]: there is no setting 'epoch'; did you mean 'epochs'"),
        ([{"name": "a", "seed": 1}], r"stages\[1\]: seed is the same in all stages: set it in training"),
        ([{"name": "a", "epochs": "x"}], "training.epochs must be float, and 'x' is not"),
        (
            [{"name": "a", "train_vision": "some"}],
            r"training.train_vision must be frozen\|lora\|last_n\|full\|dict",
        ),
        (
            [{"name": "a", "train_vision": {"rang": 3}}],
            "training.train_vision: there is no setting 'rang'; did",
        ),
        ([{"name": "a", "train_vision": {"rank": "3"}}], "training.train_vision.rank must be int, and '3' is not"),
        (
            [{"name": "a", "train_vision": {"policy": "lora", "rank": 0}}],
            "training.train_vision.rank must be at least 1, and 0 is not",
        ),
        (
            [{"name": "a", "train_vision": {"policy": "lora", "dropout": 1}}],
            "training.train_vision.dropout must be at least 0 and below 1",
        ),
        ([{"name": "a", "train_vision": "last_n"}], "training.train_vision: last_n needs layers, how many"),
        ([{"name": "a", "train_projector": "lora"}], "training.train_projector: lora is for towers; the projector is"),
    ],
)
def test_what_is_wrong_with_stages_gets_a_sentence(tmp_path, stages, sentence):
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump({"stages": stages}))
    with pytest.raises(ConfigError, match=sentence):
        RunConfig.load(path)


def test_the_command_line_goes_before_what_stages_say(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(
        yaml.safe_dump({"training": {"epochs": 5, "batch_size": 2}, "stages": [{"name": "a", "epochs": 9}]})
    )
    [stage] = plan_stages(RunConfig.load(path))
    assert (stage.settings.epochs, stage.settings.batch_size) == (9, 2)
    [stage] = plan_stages(RunConfig.load(path, {"training.epochs": 1}))
    assert stage.settings.epochs == 1


# Precision


def dtypes(module: torch.nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


@pytest.mark.parametrize("policy", ["full", "last_n"])
def test_a_tower_whose_own_weights_are_trained_stays_in_float32(policy):
    model = tiny_model()
    set_policies(model, {"language": ModulePolicy(policy, layers=1 if policy == "last_n" else None)})
    hold_frozen(model, "bf16")
    assert dtypes(model.core.vision_tower) == {torch.bfloat16}
    assert dtypes(model.core.language_model) == {torch.float32}


def test_an_adapter_stays_in_float32_beside_a_tower_in_bfloat16():
    model = tiny_model()
    set_policies(model, {"language": ModulePolicy("lora", rank=2)})
    before = {name: p.clone() for name, p in model.named_parameters() if is_adapter(name)}
    hold_frozen(model, "bf16")
    found = {name: p.dtype for name, p in model.core.language_model.named_parameters()}
    assert {dtype for name, dtype in found.items() if is_adapter(name)} == {torch.float32}
    assert {dtype for name, dtype in found.items() if not is_adapter(name)} == {torch.bfloat16}
    assert all(p.equal(before[name]) for name, p in model.named_parameters() if is_adapter(name))


@pytest.fixture
def bfloat16(monkeypatch):
    """A machine that multiplies in bfloat16."""
    for module in (hardware, training, training_model):
        monkeypatch.setattr(module, "use_bf16", lambda precision: True)


def test_a_tower_that_a_later_stage_trains_is_not_rounded_before(run, bfloat16, monkeypatch, tmp_path):
    autocasts = []

    class Loop(training.TrainingLoop):
        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            autocasts.append(self.autocast)

    monkeypatch.setattr(training, "TrainingLoop", Loop)
    stages = [{"name": "a", "max_steps": 1}, {"name": "b", "max_steps": 2, "train_language": "full"}]
    model = run(stages=stages, **{"training.learning_rate": 0.0})
    assert dtypes(model.core.vision_tower) == {torch.bfloat16}
    assert autocasts == [True, True]  # the tower in float32 is multiplied in bfloat16 from the first stage on
    fresh = CaptionerForConditionalGeneration.from_pretrained(tmp_path / "run/stage-1-a")
    for name, tensor in fresh.core.language_model.state_dict().items():
        assert model.core.language_model.state_dict()[name].equal(tensor), name


def test_in_bfloat16_every_policy_trains_and_writes_captions(run, bfloat16, caplog):
    caplog.set_level(logging.INFO, "vlm_caption")
    model = run(**{"training.samples": 1, "training.eval_steps": 2})
    assert dtypes(model.core.vision_tower) == {torch.float32}  # the second stage trains its last block
    language = dict(model.core.language_model.named_parameters())
    assert {p.dtype for name, p in language.items() if not is_adapter(name)} == {torch.bfloat16}
    assert {p.dtype for name, p in language.items() if is_adapter(name)} == {torch.float32}
    assert len([line for line in caplog.messages if "[reference: " in line]) == 4  # twice in each stage


def test_one_random_token_a_caption_trains_and_is_drawn_again_after_a_stop(run, stop_at, tmp_path):
    changes = {"stages": [{"name": "one", "max_steps": 4}], "training.objective": "random_token"}
    whole = run("whole", **changes)
    stop_at("one", 4, run, output_dir="run", **changes)
    resumed = run("run", **changes)
    for name, tensor in whole.state_dict().items():
        assert resumed.state_dict()[name].equal(tensor), name
    other = run("all", stages=[{"name": "one", "max_steps": 4}])
    assert not other.core.multi_modal_projector.linear_1.weight.equal(whole.core.multi_modal_projector.linear_1.weight)


def test_one_random_token_a_caption_has_on_average_the_loss_of_all(run, tmp_path):
    changes = {"training.learning_rate": 0.0, "training.accumulation": 2, "training.weight_decay": 0.0}
    means = {}
    for objective, steps in (("all", 1), ("random_token", 24)):
        stages = [{"name": "one", "max_steps": steps, "save_steps": 100}]
        run(objective, stages=stages, **changes, **{"training.objective": objective})
        log = read_metrics(tmp_path / objective / "stage-1-one")
        losses = [entry["loss"] for entry in log if "loss" in entry]
        means[objective] = sum(losses) / len(losses)
    assert means["random_token"] == pytest.approx(means["all"], rel=0.1)
    card = (tmp_path / "random_token/README.md").read_text()
    assert "one (projector trained, learning rate 0, one random token a caption)" in card
    assert "- Learnt in an epoch: one random token of each caption" in card

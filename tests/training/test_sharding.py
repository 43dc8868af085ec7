"""FSDP2: two processes that share a model's weights train what one process does, and resume."""

import os
import shutil
import subprocess
import sys

import pytest
import yaml
from commands import REPOSITORY
from safetensors.torch import load_file
from tiny_runs import step_values, tiny_settings, write_colours

from vlm_caption import Captioner
from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.training.train import train

FSDP = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}


@pytest.fixture(scope="module")
def settings(tmp_path_factory) -> dict:
    """A run of four steps that trains the projector and an adapter, and evaluates on an odd number of images."""
    folder = tmp_path_factory.mktemp("sharded")
    write_colours(folder, dev_colours=("red", "blue", "white"))
    return tiny_settings(folder) | {
        "training.max_steps": 4,
        "training.learning_rate": 1e-3,
        "training.eval_steps": 2,
        "training.eval_captions": 3,
        "training.samples": 1,
        "training.train_language": {"policy": "lora", "rank": 2},
    }


@pytest.fixture(scope="module")
def sharded(settings, tmp_path_factory):
    """The folder of the same run in two processes that share the weights, and what they said."""
    folder = tmp_path_factory.mktemp("two")
    sections: dict[str, dict] = {}
    own = {"training.batch_size": 2, "training.output_dir": str(folder / "run")}
    for name, value in (settings | own).items():
        section, _, attribute = name.partition(".")
        sections.setdefault(section, {})[attribute] = value
    (folder / "run.yaml").write_text(yaml.safe_dump(sections))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += ["scripts/train.py", "--config", str(folder / "run.yaml")]
    environment = os.environ | FSDP | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}
    environment |= {"CUDA_VISIBLE_DEVICES": "", "VLM_CAPTION_CACHE": str(folder / "cache")}

    def run() -> str:
        done = subprocess.run(command, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stderr

    said = run()
    kept = folder / "whole"
    shutil.copytree(folder / "run", kept)
    shutil.rmtree(folder / "run" / "checkpoint-4")
    resumed = run()
    return kept, folder / "run", said, resumed


@pytest.fixture(scope="module")
def whole(settings, tmp_path_factory):
    """The folder of the run in one process."""
    folder = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLM_CAPTION_CACHE", str(folder / "cache"))
        train(RunConfig.load(None, settings | {"training.output_dir": str(folder)}))
    return folder


def test_each_process_holds_half_of_the_weights(sharded):
    [line] = [line for line in sharded[2].splitlines() if line.startswith("FSDP: ")]
    own, total = (int(word.replace(",", "")) for word in line.split() if word[0].isdigit())
    assert own == pytest.approx(total / 2, rel=0.05)


@pytest.mark.parametrize("name", ["loss", "grad_norm", "eval_loss", "eval_cider"])
def test_they_train_what_one_process_does(sharded, whole, name):
    values = step_values(whole, name)
    assert len(values) in (2, 4)
    assert step_values(sharded[0], name) == pytest.approx(values, rel=1e-3)


def test_they_save_the_bridge_that_one_process_does(sharded, whole):
    expected, found = (load_file(folder / "model.safetensors") for folder in (whole, sharded[0]))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert found[name].flatten().tolist() == pytest.approx(tensor.flatten().tolist(), rel=1e-3, abs=1e-5), name


def test_the_checkpoints_are_those_of_one_process(sharded, whole):
    for name in ("optimizer.safetensors", "model.safetensors", "best.safetensors"):
        expected, found = (load_file(folder / "checkpoint-4" / name) for folder in (whole, sharded[0]))
        assert {key: tensor.shape for key, tensor in found.items()} == {k: t.shape for k, t in expected.items()}
    assert {path.suffix for path in sharded[0].glob("checkpoint-*/*")} == {".json", ".safetensors"}


def test_a_resumed_run_ends_as_if_it_had_not_been_stopped(sharded):
    kept, resumed, _, said = sharded
    assert "Resuming from" in said
    expected, found = (load_file(folder / "model.safetensors") for folder in (kept, resumed))
    assert all(found[name].equal(tensor) for name, tensor in expected.items())
    assert step_values(resumed) == step_values(kept)


def test_the_result_captions_in_one_process(sharded, settings):
    captioner = Captioner.from_pretrained(sharded[0], device="cpu")
    assert captioner.caption(settings["data.path"].replace("captions.csv", "dev_red.png"))
    assert (sharded[0] / "README.md").is_file()


@pytest.mark.parametrize(
    ("environment", "stages", "sentence"),
    [
        ({"FSDP_VERSION": "1"}, [], "in its first version: add --fsdp_version 2"),
        ({"WORLD_SIZE": "1"}, [], "started one process: set --num_processes to 2"),
        ({"FSDP_OFFLOAD_PARAMS": "true"}, [], "to offload weights.* set fsdp_offload_params false"),
        ({}, [{"name": "a"}], "trains runs of one stage"),
    ],
)
def test_what_sharding_does_not_do_is_refused_in_a_sentence(
    settings, tmp_path, monkeypatch, environment, stages, sentence
):
    for name, value in (FSDP | {"WORLD_SIZE": "2"} | environment).items():
        monkeypatch.setenv(name, value)
    config = RunConfig.load(None, settings | {"training.output_dir": str(tmp_path / "run")})
    config.stages = stages
    with pytest.raises(ConfigError, match=sentence):
        train(config)
    assert not (tmp_path / "run").exists()

"""Training in several processes by the commands that docs/distributed.md gives."""

import os
import subprocess
import sys

import pytest
from accelerate import Accelerator
from commands import REPOSITORY
from safetensors.torch import load_file

from vlm_caption.config.run_config import RunConfig
from vlm_caption.core.errors import ConfigError
from vlm_caption.training.launch import check_launcher
from vlm_caption.training.train import train

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
LAUNCH = ["-m", "accelerate.commands.launch"]
CONFIG_FILE = ["--config_file", "configs/accelerate/multi_cpu.yaml"]
OPTIONS = ["--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--main_process_port", "0"]
LAUNCHERS = ("ACCELERATE_", "OMPI_", "PMI_", "MASTER_", "WORLD_SIZE")


@pytest.fixture
def unlaunched(monkeypatch):
    """As if no launcher had started the tests."""
    for name in os.environ:
        if name.startswith(LAUNCHERS):
            monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The bridge that one process trains in two steps."""
    folder = tmp_path_factory.mktemp("whole")
    train(
        RunConfig.load(
            REPOSITORY / "configs" / "tiny.yaml",
            {
                "data.path": str(REPOSITORY / "examples" / "captions.csv"),
                "training.max_steps": 2,
                "training.batch_size": 2,
                "training.precision": "fp32",
                "training.output_dir": str(folder),
            },
        )
    )
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    "launcher",
    [TORCHRUN, [*LAUNCH, *CONFIG_FILE], [*LAUNCH, *OPTIONS]],
    ids=["torchrun", "accelerate with a config", "accelerate with options"],
)
def test_a_command_trains_in_two_processes_what_one_does(launcher, whole, tmp_path, unlaunched):
    command = [sys.executable, *launcher, "scripts/train.py", "--config", "configs/tiny.yaml", "--max-steps", "2"]
    settings = ["--training.batch_size", "1", "--training.precision", "fp32", "--output-dir", str(tmp_path)]
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        command + settings, cwd=REPOSITORY, env=environment, stderr=subprocess.PIPE, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("Training in 2 processes, each with 1 threads") == 1
    bridge = load_file(tmp_path / "model.safetensors")
    assert bridge.keys() == whole.keys()
    for name, tensor in whole.items():
        assert bridge[name].flatten().tolist() == pytest.approx(tensor.flatten().tolist(), rel=1e-3, abs=1e-6), name


@pytest.mark.parametrize("name", ["Megatron_LM", "DeepSpeed"])
def test_a_model_in_shards_is_refused(name, unlaunched, monkeypatch, tmp_path):
    monkeypatch.setenv(f"ACCELERATE_USE_{name.upper()}", "true")
    with pytest.raises(ConfigError, match=f"told to use {name}.*distributed_type MULTI_GPU"):
        train(RunConfig.load(REPOSITORY / "configs" / "tiny.yaml", {"training.output_dir": str(tmp_path / "run")}))
    assert not (tmp_path / "run").exists()


def test_mixed_precision_of_accelerate_is_told_and_not_used(unlaunched, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    check_launcher()
    told = "accelerate launch was told mixed_precision bf16, which is not used: training.precision says it"
    assert caplog.messages == [told]
    assert os.environ["ACCELERATE_MIXED_PRECISION"] == "no"
    assert Accelerator(cpu=True).mixed_precision == "no"


def test_one_process_where_two_were_asked_for_is_told(unlaunched, monkeypatch, caplog):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    check_launcher()
    assert caplog.messages == []
    monkeypatch.setenv("MASTER_PORT", "29500")  # as accelerate launch --cpu --num_processes 2 does
    check_launcher()
    assert caplog.messages[0].startswith("accelerate launch started one process")
    caplog.clear()
    monkeypatch.setenv("WORLD_SIZE", "2")
    check_launcher()
    assert caplog.messages == []

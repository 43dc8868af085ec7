"""What is imported when: nothing heavy before it is needed, and registration with transformers in either order."""

import json
import os
import subprocess
import sys

import pytest
import torch
from commands import REPOSITORY

from vlm_caption import compose

HEAVY = {"torch", "transformers", "datasets", "pyarrow", "pandas", "numpy", "matplotlib", "PIL", "onnx", "gguf"}
FOR_TRAINING = {"datasets", "pandas", "pyarrow", "matplotlib", "ijson", "onnx", "gguf", "peft", "transformers.trainer"}


def python(*arguments: str) -> subprocess.CompletedProcess:
    environment = os.environ | {"PYTHONPATH": str(REPOSITORY)}
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)


def modules_after(code: str) -> set[str]:
    """The modules that a new process has imported after some code."""
    process = python("-c", f"{code}\nimport json, sys; print(json.dumps(list(sys.modules)))")
    assert process.returncode == 0, process.stderr
    return set(json.loads(process.stdout.splitlines()[-1]))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint")
    torch.manual_seed(0)
    vision = {"model_type": "dinov2", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    language = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}
    model, processor = compose(vision | {"image_size": 28, "patch_size": 14}, language)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def test_the_package_alone_imports_nothing_heavy():
    assert not HEAVY & modules_after("import vlm_caption, vlm_caption.data, vlm_caption.metrics, vlm_caption.config")


@pytest.mark.parametrize("command", ["caption", "train", "evaluate", "inspect", "cache", "serve", "demo"])
def test_help_imports_nothing_heavy(command):
    code = f"""
from vlm_caption.cli.main import main
try:
    main(["{command}", "--help"])
except SystemExit as exit:
    assert exit.code == 0
"""
    assert not HEAVY & modules_after(code)


@pytest.mark.parametrize(
    ("argv", "code", "sentence"),
    [
        (["train", "--batchsize", "3"], 2, "there is no option '--batchsize'; did you mean '--batch-size'?"),
        (["train", "--batch-size", "0"], 2, "training.batch_size must be above 0, and 0 is not."),
        (["train", "--config", "none.yaml"], 2, "none.yaml: the config cannot be read (No such file or directory)."),
        (["caption"], 2, "give pictures to caption, --features FILE or --config FILE, and only one of these"),
        (["caption", "none.jpg"], 1, "none.jpg: there is no such file"),
        (["evaluate", "--results", "a.json"], 2, "--results and --references go together"),
    ],
)
def test_mistakes_are_answered_without_torch(argv, code, sentence):
    process = python("-X", "importtime", "-m", "vlm_caption", *argv)
    timings, lines = [], []
    for line in process.stderr.splitlines():
        (timings if line.startswith("import time:") else lines).append(line)
    assert (process.returncode, lines) == (code, [f"vlm-caption {argv[0]}: {sentence}"])
    assert not {"torch", "transformers", "datasets"} & {line.rpartition("|")[2].strip() for line in timings}


def test_captioning_imports_nothing_of_training(checkpoint):
    photo = REPOSITORY / "examples" / "officer.jpg"
    code = f"""
from vlm_caption.cli.main import main
assert main(["caption", "--checkpoint", {str(checkpoint)!r}, {str(photo)!r}, "--max-new-tokens", "2"]) == 0
"""
    assert not FOR_TRAINING & modules_after(code)


ORDERS = {
    "ours first": "import vlm_caption\nfrom transformers import AutoModelForImageTextToText, AutoProcessor",
    "theirs first": "from transformers import AutoModelForImageTextToText, AutoProcessor\nimport vlm_caption",
    "a file of the model first": """
import vlm_caption.model.configuration_captioner
from transformers import AutoModelForImageTextToText, AutoProcessor
""",
    "a file of the towers first": """
import vlm_caption.towers.sources
from transformers import AutoModelForImageTextToText, AutoProcessor
""",
    "others between": """
import vlm_caption, accelerate, peft, timm
from transformers import LlamaForCausalLM, Trainer, pipeline
from transformers import AutoModelForImageTextToText, AutoProcessor
""",
}


@pytest.mark.parametrize("imports", ORDERS.values(), ids=ORDERS)
def test_auto_classes_load_a_captioner_in_either_order(checkpoint, imports):
    process = python(
        "-c",
        f"""{imports}
model = AutoModelForImageTextToText.from_pretrained({str(checkpoint)!r})
processor = AutoProcessor.from_pretrained({str(checkpoint)!r})
print(type(model).__name__, type(processor).__name__, processor.open_image.__module__)
""",
    )
    expected = "CaptionerForConditionalGeneration CaptionerProcessor vlm_caption.images.opening"
    assert process.stdout.strip() == expected, process.stderr


def test_an_interrupt_during_imports_is_quiet(tmp_path):
    (tmp_path / "torch.py").write_text("raise KeyboardInterrupt")
    photo = REPOSITORY / "examples" / "officer.jpg"
    for arguments in (["scripts/caption.py", str(photo)], ["-m", "vlm_caption", "train"], ["scripts/demo.py"]):
        process = subprocess.run(
            [sys.executable, *arguments],
            cwd=REPOSITORY,
            env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])},
            capture_output=True,
            text=True,
            check=False,
        )
        assert (process.returncode, process.stdout, process.stderr) == (130, "", "")


@pytest.mark.parametrize("command", ["train", "cache"])
def test_a_signal_during_imports_ends_a_run_with_a_sentence(tmp_path, command):
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGTERM)")
    process = subprocess.run(
        [sys.executable, "-m", "vlm_caption", command, "--data.path", "examples"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])},
        capture_output=True,
        text=True,
        check=False,
    )
    expected = (143, "", f"vlm-caption {command}: interrupted\n")
    assert (process.returncode, process.stdout, process.stderr) == expected


def test_a_missing_package_is_named_with_its_extra(tmp_path):
    (tmp_path / "datasets.py").write_text("raise ModuleNotFoundError(\"No module named 'datasets'\", name='datasets')")
    process = subprocess.run(
        [sys.executable, "-m", "vlm_caption", "inspect", "examples/captions.csv"],
        cwd=REPOSITORY,
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(REPOSITORY)])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert process.returncode == 2
    assert process.stderr.endswith(
        "vlm-caption inspect: This needs the package datasets: pip install 'vlm-caption[train]'.\n"
    )

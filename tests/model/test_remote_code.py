"""A full checkpoint carries its code: it loads with transformers alone, where this package is not installed."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import (
    IMAGE_SIZE,
    PROJECTOR_FORMS,
    caption_of,
    save_checkpoint,
    save_language_model,
    save_vision_tower,
    tiny_config,
    tiny_model,
)

from vlm_caption import CaptionerForConditionalGeneration, compose
from vlm_caption.model import modeling_captioner
from vlm_caption.model.modeling_captioner import TESTED_WITH
from vlm_caption.towers.checkpoints import CODE_FILES

EXAMPLE = Path(__file__).parents[2] / "examples" / "transformers_only.py"

# An interpreter with another version of transformers, to load and run a full checkpoint with.
OTHER_PYTHON = os.environ.get("VLM_CAPTION_OTHER_PYTHON")

# Run before anything else: the package cannot be imported, wherever it may be installed.
WITHOUT_THE_PACKAGE = "import sys; sys.modules['vlm_caption'] = None\n"


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """A full checkpoint, and a photo beside it."""
    return save_checkpoint(tmp_path_factory.mktemp("whole"), pictures=1)


def run(code: str, *arguments: object, home: Path, python: str = sys.executable) -> subprocess.CompletedProcess:
    """Runs Python where this package cannot be imported, with nobody to answer questions."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [python, "-c", WITHOUT_THE_PACKAGE + code, *map(str, arguments)],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=240,
    )


def test_a_full_checkpoint_holds_the_code_files_and_a_bridge_none(tmp_path, whole):
    assert {path.name for path in whole.glob("*.py")} == set(CODE_FILES)
    model, processor = compose(save_vision_tower(tmp_path / "v"), save_language_model(tmp_path / "l"))
    model.save_pretrained(tmp_path / "bridge")
    processor.save_pretrained(tmp_path / "bridge")
    assert list((tmp_path / "bridge").glob("*.py")) == []
    assert "auto_map" not in json.loads((tmp_path / "bridge/config.json").read_text())


def test_a_full_checkpoint_saved_as_a_bridge_names_no_code(tmp_path):
    model, _ = compose(save_vision_tower(tmp_path / "v"), save_language_model(tmp_path / "l"))
    model.save_pretrained(tmp_path / "whole", full=True)
    CaptionerForConditionalGeneration.from_pretrained(tmp_path / "whole").save_pretrained(tmp_path / "bridge")
    assert "auto_map" not in json.loads((tmp_path / "bridge/config.json").read_text())


def test_the_example_of_a_few_lines_captions_a_photo_without_the_package(tmp_path, whole):
    code = EXAMPLE.read_text()
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    done = run(code, whole, whole / "0.png", home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == caption_of(whole, 0)


def test_the_pipeline_works_without_the_package_and_what_it_loaded_saves_again(tmp_path, whole):
    code = """
from transformers import AutoModel, pipeline
folder, copy = sys.argv[1:]
pipe = pipeline("image-text-to-text", model=folder, trust_remote_code=True)
print(repr(pipe(folder + "/0.png", text="")[0]["generated_text"]))
pipe.model.save_pretrained(copy, full=True)
pipe.processor.save_pretrained(copy)
print(type(AutoModel.from_pretrained(folder, trust_remote_code=True)).__name__)
"""
    done = run(code, whole, tmp_path / "copy", home=tmp_path)
    assert done.returncode == 0, done.stderr
    caption, headless = done.stdout.splitlines()
    assert caption == repr(caption_of(whole, 0))
    assert headless == "CaptionerModel"
    assert {path.name for path in (tmp_path / "copy").glob("*.py")} == set(CODE_FILES)
    assert caption_of(tmp_path / "copy", 0) == caption_of(whole, 0)


@pytest.mark.skipif(OTHER_PYTHON is None, reason="VLM_CAPTION_OTHER_PYTHON names no interpreter")
def test_another_environment_writes_the_same_caption(tmp_path, whole):
    done = run(EXAMPLE.read_text(), whole, whole / "0.png", home=tmp_path, python=OTHER_PYTHON)
    assert done.returncode == 0, done.stderr
    assert done.stdout.rstrip("\n") == caption_of(whole, 0)


@pytest.mark.parametrize(("tested_with", "warns"), [("99.0", False), ("5.0", True)])
def test_a_newer_transformers_than_was_tested_is_told(tmp_path, whole, tested_with, warns):
    folder = shutil.copytree(whole, tmp_path / "older")
    code = (folder / "modeling_captioner.py").read_text()
    changed = code.replace(f'"{TESTED_WITH[1]}")', f'"{tested_with}")')
    assert changed != code
    (folder / "modeling_captioner.py").write_text(changed)
    load = (
        "from transformers import AutoModelForImageTextToText\n"
        "AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)"
    )
    done = run(load, folder, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert (f"was tested with transformers {TESTED_WITH[0]} to {tested_with}, and" in done.stderr) == warns


def test_the_installed_transformers_is_among_those_tested():
    lowest, highest = ([int(part) for part in version.split(".")] for version in TESTED_WITH)
    assert lowest <= [int(part) for part in transformers.__version__.split(".")[:2]] <= highest


def test_every_projector_loads_without_the_package(tmp_path):
    expected = []
    for name, (settings, _) in PROJECTOR_FORMS.items():
        model = tiny_model("dinov2", "llama", projector=name, image_end="learned", query_tokens=2, **settings)
        model.save_pretrained(tmp_path / name, full=True)
        image = torch.ones(1, 3, IMAGE_SIZE, IMAGE_SIZE)
        expected.append(model.core.get_image_features(image).pooler_output.sum().item())
    code = """
import torch
from transformers import AutoModelForImageTextToText
size, *folders = sys.argv[1:]
for folder in folders:
    model = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    print(model.core.get_image_features(torch.ones(1, 3, int(size), int(size))).pooler_output.sum().item())
"""
    done = run(code, IMAGE_SIZE, *(tmp_path / name for name in PROJECTOR_FORMS), home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [float(line) for line in done.stdout.split()] == pytest.approx(expected, abs=1e-3)


def test_a_layer_prefix_works_without_the_package(tmp_path):
    model = tiny_model("dinov2", "llama", layer_prefix_rank=3)
    model.save_pretrained(tmp_path / "whole", full=True)
    settings = {"pixel_values": torch.ones(1, 3, IMAGE_SIZE, IMAGE_SIZE), "num_beams": 2, "max_new_tokens": 5}
    code = """
import torch
from transformers import AutoModelForImageTextToText
model = AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
image = torch.ones(1, 3, int(sys.argv[2]), int(sys.argv[2]))
print(*model.generate(pixel_values=image, num_beams=2, max_new_tokens=5)[0].tolist())
"""
    done = run(code, tmp_path / "whole", IMAGE_SIZE, home=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [str(token) for token in model.generate(**settings)[0].tolist()]


def test_the_code_of_a_checkpoint_has_no_loss_and_says_so():
    model = modeling_captioner.CaptionerForConditionalGeneration(tiny_config())
    ids = model.core.image_prompt(1)
    with pytest.raises(ValueError, match="is for inference: to train it, import vlm_caption first"):
        model(input_ids=ids, pixel_values=torch.ones(1, 3, IMAGE_SIZE, IMAGE_SIZE), labels=ids)


@pytest.mark.parametrize("loader", ["AutoConfig", "AutoProcessor", "AutoModelForImageTextToText"])
def test_without_the_flag_none_of_the_code_runs(tmp_path, whole, loader):
    trapped = tmp_path / "trapped"
    shutil.copytree(whole, trapped)
    for name in CODE_FILES:
        (trapped / name).write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    done = run(f"from transformers import {loader}\n{loader}.from_pretrained(sys.argv[1])", trapped, home=tmp_path)
    assert done.returncode == 1
    assert not (tmp_path / "ran").exists()
    if loader != "AutoProcessor":  # which does not ask, and says that it knows no such class
        assert "trust_remote_code=True" in done.stderr


def test_a_bridge_without_the_package_says_what_to_install(tmp_path):
    """A bridge that somebody put the code files beside."""
    model, _ = compose(save_vision_tower(tmp_path / "v"), save_language_model(tmp_path / "l"))
    model.save_pretrained(tmp_path / "bridge", full=True)
    config = json.loads((tmp_path / "bridge/config.json").read_text())
    config["external_towers"] = ["vision_tower", "language_model"]
    (tmp_path / "bridge/config.json").write_text(json.dumps(config))
    code = """
from transformers import AutoModelForImageTextToText
AutoModelForImageTextToText.from_pretrained(sys.argv[1], trust_remote_code=True)
"""
    done = run(code, tmp_path / "bridge", home=tmp_path)
    assert done.returncode == 1
    assert "holds the bridge alone, without vision_tower and language_model: install" in done.stderr


def test_where_the_package_is_installed_its_own_classes_are_taken(whole):
    from transformers import AutoModelForImageTextToText

    for flag in (None, True):
        loaded = AutoModelForImageTextToText.from_pretrained(whole, trust_remote_code=flag)
        assert type(loaded) is CaptionerForConditionalGeneration
    assert torch.equal(loaded.core.image_prompt(1), tiny_model(language="llama").core.image_prompt(1))

"""Checkpoints of unknown origin: what is wrong with one is said in one sentence, soon, and none of its code runs."""

import json
import shutil
import time
from pathlib import Path

import pytest
from fuzz_checkpoints import fuzz, write_originals
from safetensors.torch import load_file, save_file
from tiny_models import save_language_model, save_vision_tower

from vlm_caption import BackboneError, Captioner, compose
from vlm_caption.core.errors import CheckpointError


@pytest.fixture(scope="module")
def originals(tmp_path_factory) -> dict[str, Path]:
    """A full checkpoint and a bridge, by name."""
    return {folder.name: folder for folder in write_originals(tmp_path_factory.mktemp("originals"))}


@pytest.fixture(params=["full", "bridge"])
def folder(request, originals, tmp_path) -> Path:
    """A copy to damage."""
    return shutil.copytree(originals[request.param], tmp_path / request.param)


def change(path: Path, *keys: str, value: object) -> None:
    """Sets one value of nested JSON."""
    content = inner = json.loads(path.read_text())
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path.write_text(json.dumps(content))


def refusal(folder: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        Captioner.from_pretrained(folder, device="cpu")
    assert "\n" not in str(caught.value)
    return str(caught.value)


def set_trap(folder: Path, name: str = "trap.py") -> Path:
    """Puts code into a folder that writes a file when it runs. Returns that file."""
    (folder / name).write_text(f"open({str(folder / 'ran')!r}, 'w').close()\nclass Trap: pass\n")
    return folder / "ran"


def test_damaged_checkpoints_load_or_are_refused_in_a_sentence():
    outcomes, problems = fuzz(seed=0, start=0, count=25)
    assert problems == []
    assert outcomes["refused"] > outcomes["loaded"] > 0


@pytest.mark.parametrize(
    ("file", "auto_class"),
    [
        ("tokenizer_config.json", "AutoTokenizer"),
        ("processor_config.json", "AutoProcessor"),
        ("config.json", "AutoConfig"),
        ("config.json", "AutoModelForImageTextToText"),
    ],
)
def test_a_file_that_wants_code_is_named(folder, file, auto_class):
    ran = set_trap(folder)
    wanted = ["trap.Trap", None] if auto_class == "AutoTokenizer" else "trap.Trap"
    change(folder / file, "auto_map", value={auto_class: wanted})
    assert f"{folder / file} wants the code trap.Trap to be run" in refusal(folder)
    assert not ran.exists()


def test_the_code_of_a_full_checkpoint_is_not_run_where_the_package_is_installed(originals, tmp_path):
    folder = shutil.copytree(originals["full"], tmp_path / "full")
    ran = [set_trap(folder, path.name) for path in folder.glob("*.py")]
    Captioner.from_pretrained(folder, device="cpu")
    assert len(ran) > 1
    assert not any(path.exists() for path in ran)


@pytest.mark.parametrize("file", ["config.json", "tokenizer_config.json"])
def test_a_tower_that_wants_code_is_refused_in_a_sentence(tmp_path, file):
    vision, language = save_vision_tower(tmp_path / "v"), save_language_model(tmp_path / "l")
    ran = set_trap(tmp_path / "l")
    if file == "config.json":
        change(tmp_path / "l" / file, "model_type", value="unheard_of")
        change(tmp_path / "l" / file, "auto_map", value={"AutoConfig": "trap.Trap"})
    else:
        change(tmp_path / "l" / file, "tokenizer_class", value="Trap")
        change(tmp_path / "l" / file, "auto_map", value={"AutoTokenizer": ["trap.Trap", None]})
        (tmp_path / "l" / "tokenizer.json").unlink()
    with pytest.raises(BackboneError, match=rf"{file} wants the code trap.Trap to be run"):
        compose(vision, language)
    assert not ran.exists()


@pytest.mark.parametrize(
    ("keys", "value", "words"),
    [
        (("text_config",), [], "text_config"),
        (("text_config",), 3, "text_config"),
        (("text_config", "vocab_size"), "many", "vocab_size"),
        (("vision_config", "patch_size"), 0, "vision_config.patch_size = 0"),
        (("vision_config", "num_attention_heads"), 0, "vision_config.num_attention_heads = 0"),
        (("vision_config", "hidden_size"), "16", "hidden_size"),
        (("projector_layers",), "x", "projector_layers"),
        (("image_token_id",), -5, "image_token_id"),
    ],
)
def test_a_value_that_makes_no_sense_is_named(folder, keys, value, words):
    change(folder / "config.json", *keys, value=value)
    sentence = refusal(folder)
    assert words in sentence
    assert str(folder) in sentence


@pytest.mark.parametrize(("which", "field"), [("bridge", "n_layer"), ("full", "num_hidden_layers")])
def test_ten_million_layers_are_refused_at_once(originals, tmp_path, which, field):
    folder = shutil.copytree(originals[which], tmp_path / which)
    change(folder / "config.json", "text_config", field, value=10_000_000)
    start = time.process_time()
    assert "wants 10000000 layers in the language_model" in refusal(folder)
    assert time.process_time() - start < 10


def test_zero_heads_are_refused(originals, tmp_path):
    folder = shutil.copytree(originals["bridge"], tmp_path / "bridge")
    change(folder / "config.json", "text_config", "n_head", value=0)
    assert "text_config.n_head = 0" in refusal(folder)


def test_the_first_of_several_shapes_that_do_not_fit_are_named(folder):
    tensors = load_file(folder / "model.safetensors")
    for name in tensors:
        if "multi_modal_projector" in name:
            tensors[name] = tensors[name][:-1].contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    sentence = refusal(folder)
    assert "core.multi_modal_projector.linear_1.weight is [47, 16] and not [48, 16]" in sentence
    assert "and 1 more" in sentence


def test_another_number_of_image_tokens_than_the_model_takes_is_refused(folder):
    change(folder / "processor_config.json", "image_seq_length", value=10**9)
    assert "has image_seq_length = 1000000000, and its config.json 1" in refusal(folder)

"""The three systems that the package covers, each by its own config, with tiny towers in the Hub's layout."""

from pathlib import Path
from typing import Any

import pytest
from commands import REPOSITORY
from safetensors.torch import load_file
from tiny_models import PROJECTOR, save_language_model, save_timm_tower, save_vision_tower
from tiny_runs import write_colours

from vlm_caption import Captioner, CaptionerForConditionalGeneration
from vlm_caption.config.run_config import RunConfig
from vlm_caption.model.adapters import is_adapter
from vlm_caption.model.freezing import module_of
from vlm_caption.training.train import train

SMALL_VIT = {
    "model_type": "vit",
    "image_size": 48,
    "patch_size": 16,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
SMALL_GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 2}


@pytest.fixture
def run(tmp_path):
    """Trains a config of the repository for a few steps, its towers replaced, and opens what it leaves."""
    pictures = write_colours(tmp_path)

    def run(name: str, vision: Any, language: Any) -> tuple[CaptionerForConditionalGeneration, set[str], str]:
        settings = {
            "model.vision": vision,
            "model.language": language,
            "data.path": str(pictures),
            "training.output_dir": str(tmp_path / "run"),
            "training.max_steps": 3,
            "training.eval_steps": 3,
            "training.warmup_steps": 0,
            "training.precision": "fp32",
        }
        model = train(RunConfig.load(REPOSITORY / "configs" / f"{name}.yaml", settings))
        weights = set(load_file(tmp_path / "run/model.safetensors"))
        captioner = Captioner.from_pretrained(str(tmp_path / "run"))
        [caption] = captioner.caption(tmp_path / "dev_cyan.png", max_new_tokens=5)
        return model, weights, caption.text

    return run


def test_the_toy_trains_its_projector_alone(run, tmp_path):
    pytest.importorskip("timm")
    vision = save_timm_tower(tmp_path / "vision", "test_vit")
    _, weights, caption = run("vit_gpt2", vision, save_language_model(tmp_path / "language"))
    assert weights == PROJECTOR
    assert isinstance(caption, str)


@pytest.mark.parametrize("name", ["seemore", "seemore_source"])
def test_seemore_trains_all_and_keeps_all(run, name):
    model, weights, caption = run(name, SMALL_VIT, SMALL_GPT2)
    assert {module_of(name) for name in weights} == {"vision", "projector", "language"}
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert model.config.external_towers == []
    assert isinstance(caption, str)


def test_seemores_source_has_one_image_token_and_writes_characters(run):
    model, _, caption = run("seemore_source", SMALL_VIT, SMALL_GPT2)
    assert (model.config.image_tokens, model.config.pooled_feature, model.config.vision_seq_length) == (
        "pooled",
        "cls",
        1,
    )
    assert set(caption) <= set("aeghklmnrtuwy cdiobs<>"), "only characters of the training captions are written"


@pytest.mark.parametrize("name", ["moore_vit_phi3", "moore_small"])
def test_moore_trains_and_keeps_adapters_and_the_vectors_around_the_image(run, tmp_path, name):
    pytest.importorskip("peft")
    family = "vit_cls" if name == "moore_vit_phi3" else "dinov2"
    vision = save_vision_tower(tmp_path / "vision", family)
    model, weights, caption = run(name, vision, save_language_model(tmp_path / "language", "phi3"))
    adapters = {name for name in weights if is_adapter(name)}
    assert {module_of(name) for name in adapters} == {"vision", "language"}
    around = {"core.image_start", "core.image_end", "core.query_tokens"}
    assert around <= weights
    assert {name.removeprefix("core.").split(".")[0] for name in weights - adapters - around} == {
        "multi_modal_projector"
    }
    # Trained, and not merely there: a fresh adapter's second matrix is 0.
    parameters = dict(model.named_parameters())
    for adapter in adapters:
        if ".lora_B." in adapter:
            assert parameters[adapter].any(), adapter
    assert model.config.image_seq_length == model.config.vision_seq_length + 2 + len("This image contains: ")
    assert isinstance(caption, str)


def test_every_seed_system_has_its_config():
    names = {path.stem for path in Path(REPOSITORY / "configs").glob("*.yaml")}
    assert {"vit_gpt2", "seemore", "seemore_source", "moore_vit_phi3", "moore_small"} <= names

"""Checkpoints: what a bridge holds and refuses, full ones, trained towers, and Trainer's."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import LANGUAGE, PROJECTOR, VISION, picture, save_language_model, save_vision_tower, tiny_model
from transformers import AutoModel, Trainer, TrainingArguments

from vlm_caption import (
    BackboneError,
    CaptionerConfig,
    CaptionerForConditionalGeneration,
    CaptionerModel,
    CaptionerProcessor,
    compose,
)
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.model import modeling_captioner
from vlm_caption.towers import checkpoints


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> tuple[str, str]:
    """Folders of a pretrained vision tower and a pretrained language model."""
    root = tmp_path_factory.mktemp("towers")
    return save_vision_tower(root / "vision"), save_language_model(root / "language")


@pytest.fixture(scope="module")
def inputs(towers) -> dict[str, torch.Tensor]:
    return compose(*towers)[1](images=[picture(0), picture(1)], text="A", return_tensors="pt")


@pytest.fixture
def model(towers) -> CaptionerForConditionalGeneration:
    return compose(*towers)[0].eval()


def load(directory: Path, **settings) -> CaptionerForConditionalGeneration:
    return CaptionerForConditionalGeneration.from_pretrained(directory, **settings)


def saved_keys(directory: Path) -> set[str]:
    return set(load_file(directory / "model.safetensors"))


def assert_equal(found: torch.nn.Module, expected: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """The same weights, to the last bit, and the same outputs."""
    found_weights, expected_weights = found.state_dict(), expected.state_dict()
    assert found_weights.keys() == expected_weights.keys()
    assert [name for name in expected_weights if not torch.equal(found_weights[name], expected_weights[name])] == []
    assert not found.training
    # Up to the last bits: where a tensor lies in memory decides which kernel multiplies it.
    torch.testing.assert_close(found(**inputs)[0], expected(**inputs)[0], rtol=1e-5, atol=1e-5)


def perturb(directory: str) -> None:
    """Changes one value of a tower's weights."""
    path = Path(directory) / "model.safetensors"
    tensors = load_file(path)
    tensors[sorted(tensors)[-1]].view(-1)[0] += 1e-3
    save_file(tensors, path, metadata={"format": "pt"})


def move(towers: tuple[str, str], to: Path) -> tuple[str, str]:
    return tuple(shutil.copytree(tower, to / Path(tower).name).as_posix() for tower in towers)


# Bridges


def test_options_of_the_hub_are_for_the_towers_of_a_bridge_as_well(tmp_path, model, towers, monkeypatch):
    model.save_pretrained(tmp_path)
    folders = dict(zip(("org/vision", "org/language"), towers, strict=True))
    seen = {}

    def snapshot_download(repo_id, **options):
        seen[repo_id] = options
        return folders[repo_id]

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    options = {"token": "hf_own", "cache_dir": str(tmp_path / "cache"), "local_files_only": True}
    load(tmp_path, vision_backbone="org/vision", text_backbone="org/language", revision="theirs", **options)
    assert seen.keys() == folders.keys()
    for given in seen.values():
        assert given.items() >= options.items()
        assert given["revision"] is None


def test_a_bridge_holds_the_projector_alone(tmp_path, model, towers):
    model.save_pretrained(tmp_path)
    assert saved_keys(tmp_path) == PROJECTOR
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert size < sum(p.numel() for p in model.core.multi_modal_projector.parameters()) * 4 + 8000
    config = json.loads((tmp_path / "config.json").read_text())
    assert config["external_towers"] == ["vision_tower", "language_model"]
    assert (config["vision_backbone"]["name"], config["text_backbone"]["name"]) == towers
    assert config["vision_backbone"]["fingerprint"].startswith("sha256:")


def test_a_learned_start_is_part_of_the_bridge(tmp_path, towers):
    model, processor = compose(*towers, image_start="learned")
    with pytest.raises(ValueError, match="leave out variant"):
        model.save_pretrained(tmp_path, variant="fp16")
    model.save_pretrained(tmp_path)
    assert saved_keys(tmp_path) == PROJECTOR | {"core.image_start"}
    assert_equal(load(tmp_path), model.eval(), processor(images=picture(), return_tensors="pt"))


@pytest.mark.parametrize("language", LANGUAGE)
def test_a_bridge_loads_to_the_model_it_was_saved_from(tmp_path, towers, language):
    source = save_language_model(tmp_path / "language", language)
    model, processor = compose(towers[0], source)
    model.save_pretrained(tmp_path / "bridge")
    assert saved_keys(tmp_path / "bridge") == PROJECTOR
    loaded = load(tmp_path / "bridge")
    assert_equal(loaded, model.eval(), processor(images=picture(), return_tensors="pt"))
    tied = loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert tied == model.config.tie_word_embeddings


@pytest.mark.parametrize("vision", sorted(VISION.keys() - {"clip_projection"}))
def test_a_bridge_loads_with_every_vision_tower(tmp_path, towers, vision):
    source = save_vision_tower(tmp_path / "vision", vision)
    model, processor = compose(source, towers[1], pooled_feature=VISION[vision].get("pooled_feature", "pooler_output"))
    model.save_pretrained(tmp_path / "bridge")
    assert saved_keys(tmp_path / "bridge") == PROJECTOR
    assert_equal(load(tmp_path / "bridge"), model.eval(), processor(images=picture(), return_tensors="pt"))


def test_a_bridge_has_its_generation_settings(tmp_path, model):
    model.generation_config.update(max_new_tokens=17, num_beams=2)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path).generation_config
    assert (loaded.max_new_tokens, loaded.num_beams, loaded.eos_token_id) == (17, 2, 2)


def test_a_loaded_bridge_is_frozen_and_saves_as_a_bridge(tmp_path, model):
    model.save_pretrained(tmp_path / "first")
    loaded = load(tmp_path / "first").train()
    assert {name for name, p in loaded.named_parameters() if p.requires_grad} == PROJECTOR
    assert not loaded.core.language_model.training
    loaded.save_pretrained(tmp_path / "second")
    first, second = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "second"))
    assert first.keys() == second.keys()
    assert all(first[name].equal(second[name]) for name in first)


@pytest.mark.parametrize(("changed", "name"), [(0, "vision_tower"), (1, "language_model")])
def test_other_weights_in_a_towers_folder_are_refused(tmp_path, towers, inputs, changed, name):
    copies = move(towers, tmp_path)
    model = compose(*copies)[0].eval()
    model.save_pretrained(tmp_path / "bridge")
    perturb(copies[changed])
    with pytest.raises(BackboneError, match=rf"The {name} {copies[changed]} has other weights than the projector was"):
        load(tmp_path / "bridge")
    different = load(tmp_path / "bridge", allow_different_backbone=True)
    assert not different(**inputs).logits.equal(model(**inputs).logits)
    assert load_file(tmp_path / "bridge/model.safetensors").keys() == PROJECTOR


def test_what_was_allowed_to_differ_is_what_the_next_checkpoint_is_for(tmp_path, towers):
    copies = move(towers, tmp_path)
    compose(*copies)[0].save_pretrained(tmp_path / "first")
    perturb(copies[0])
    different = load(tmp_path / "first", allow_different_backbone=True)
    different.save_pretrained(tmp_path / "second")
    assert load(tmp_path / "second").state_dict().keys() == different.state_dict().keys()


def test_towers_that_moved_are_found_where_the_caller_says(tmp_path, towers, inputs):
    copies = move(towers, tmp_path / "old")
    model = compose(*copies)[0].eval()
    model.save_pretrained(tmp_path / "bridge")
    shutil.move(tmp_path / "old", tmp_path / "new")
    with pytest.raises(BackboneError, match="neither an existing directory nor a Hugging Face Hub id"):
        load(tmp_path / "bridge")
    vision, language = (str(tmp_path / "new" / Path(copy).name) for copy in copies)
    loaded = load(tmp_path / "bridge", vision_backbone=vision, text_backbone=language)
    assert_equal(loaded, model, inputs)
    assert loaded.config.vision_backbone["name"] == vision
    perturb(vision)
    with pytest.raises(BackboneError, match=r"The vision_tower .* has other weights"):
        load(tmp_path / "bridge", vision_backbone=vision, text_backbone=language)


def test_without_the_package_a_bridge_is_refused(tmp_path, model):
    model.save_pretrained(tmp_path)
    with pytest.raises(ImportError, match="holds the bridge alone, without vision_tower and language_model: install"):
        modeling_captioner.CaptionerForConditionalGeneration.from_pretrained(tmp_path)


def test_a_caller_who_keeps_the_config_may_load_twice(tmp_path, model, inputs):
    model.save_pretrained(tmp_path)
    config = CaptionerConfig.from_pretrained(tmp_path)
    before = config.to_dict()
    for _ in range(2):
        assert_equal(load(tmp_path, config=config), model, inputs)
    assert config.to_dict() == before


@pytest.mark.parametrize("damage", ["no external_towers", "no backbone", "no tensor"])
def test_missing_weights_are_refused_and_never_random(tmp_path, model, damage):
    model.save_pretrained(tmp_path)
    config = CaptionerConfig.from_pretrained(tmp_path)
    if damage == "no external_towers":
        config.external_towers = []
    elif damage == "no backbone":
        config.text_backbone = None
    else:
        tensors = load_file(tmp_path / "model.safetensors")
        del tensors["core.multi_modal_projector.linear_2.bias"]
        save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks \d+ weights of the captioner \(core\."):
        load(tmp_path, config=config)


def test_a_sharded_bridge_loads(tmp_path, model, inputs):
    model.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 1
    assert_equal(load(tmp_path), model, inputs)


def test_loading_info_is_returned_on_demand(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded, info = load(tmp_path, output_loading_info=True)
    assert isinstance(loaded, CaptionerForConditionalGeneration)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]


# Full checkpoints and towers that a bridge cannot leave out


def test_a_full_checkpoint_needs_no_towers(tmp_path, towers, inputs, monkeypatch):
    copies = move(towers, tmp_path / "towers")
    model, processor = compose(*copies)
    model.eval().save_pretrained(tmp_path / "full", full=True)
    processor.save_pretrained(tmp_path / "full")
    shutil.rmtree(tmp_path / "towers")
    monkeypatch.setattr(checkpoints, "load_towers", None)
    loaded = load(tmp_path / "full")
    assert_equal(loaded, model, inputs)
    assert json.loads((tmp_path / "full/config.json").read_text())["external_towers"] == []
    again = CaptionerProcessor.from_pretrained(tmp_path / "full")
    assert again(images=picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_a_full_checkpoint_of_frozen_towers_saves_as_a_bridge_again(tmp_path, model, inputs):
    model.save_pretrained(tmp_path / "full", full=True)
    load(tmp_path / "full").save_pretrained(tmp_path / "bridge")
    assert saved_keys(tmp_path / "bridge") == PROJECTOR
    assert_equal(load(tmp_path / "bridge"), model, inputs)


def test_saving_a_bridge_after_a_full_checkpoint_and_back(tmp_path, model):
    model.save_pretrained(tmp_path / "full", full=True)
    model.save_pretrained(tmp_path / "bridge")
    model.save_pretrained(tmp_path / "again", full=True)
    assert saved_keys(tmp_path / "bridge") == PROJECTOR
    assert saved_keys(tmp_path / "again") == saved_keys(tmp_path / "full") > PROJECTOR


@pytest.mark.parametrize("language", ["gpt2", "llama"])
def test_towers_of_random_weights_are_always_written(tmp_path, language):
    model, processor = compose(VISION["clip"]["vision_config"], LANGUAGE[language])
    model.save_pretrained(tmp_path)
    assert any(name.startswith("core.vision_tower.") for name in saved_keys(tmp_path))
    assert_equal(load(tmp_path), model.eval(), processor(images=picture(), return_tensors="pt"))


def test_one_random_tower_is_written_and_the_other_left_out(tmp_path, towers):
    model, processor = compose(VISION["clip"]["vision_config"], towers[1])
    model.save_pretrained(tmp_path)
    assert {name.split(".")[1] for name in saved_keys(tmp_path)} == {"vision_tower", "multi_modal_projector"}
    assert_equal(load(tmp_path), model.eval(), processor(images=picture(), return_tensors="pt"))


@pytest.mark.parametrize("how", ["freeze_language", "requires_grad"])
def test_a_tower_that_was_trained_is_written_for_good(tmp_path, model, inputs, how):
    if how == "freeze_language":
        model.config.freeze_language = False
        model.freeze_towers()
    else:
        model.core.language_model.requires_grad_(True)
    with torch.no_grad():
        model.core.language_model.transformer.wpe.weight.add_(1)
    model.save_pretrained(tmp_path / "trained")
    assert {name.split(".")[1] for name in saved_keys(tmp_path / "trained")} == {
        "language_model",
        "multi_modal_projector",
    }
    loaded = load(tmp_path / "trained")
    assert_equal(loaded, model, inputs)
    # A next stage that trains the projector alone must not fall back to the tower as it was before.
    loaded.config.freeze_language = True
    loaded.freeze_towers()
    loaded.save_pretrained(tmp_path / "next")
    assert_equal(load(tmp_path / "next"), model, inputs)


# Precision


def test_towers_in_bfloat16_do_not_cost_the_projector_its_precision(tmp_path, model):
    model.core.vision_tower.bfloat16()
    model.core.language_model.bfloat16()
    for full in (False, True):
        model.save_pretrained(tmp_path, full=full)
        assert json.loads((tmp_path / "config.json").read_text())["dtype"] == "float32"
        loaded = load(tmp_path)
        expected = model.core.multi_modal_projector.state_dict()
        found = loaded.core.multi_modal_projector.state_dict()
        assert all(found[name].equal(expected[name]) for name in expected)


def test_a_dtype_may_be_asked_for(tmp_path, model):
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in loaded.parameters()} == {torch.bfloat16}


# The model without its head


@pytest.mark.parametrize("full", [False, True])
def test_the_headless_model_loads_from_any_checkpoint(tmp_path, model, inputs, full):
    model.save_pretrained(tmp_path / "head", full=full)
    core = CaptionerModel.from_pretrained(tmp_path / "head")
    assert_equal(core, model.core, inputs)
    core.save_pretrained(tmp_path / "core", full=full)
    assert_equal(CaptionerModel.from_pretrained(tmp_path / "core"), model.core, inputs)
    assert_equal(load(tmp_path / "core"), model, inputs)


@pytest.mark.parametrize("language", LANGUAGE)
def test_names_in_a_full_checkpoint_are_the_models_own_however_often_it_is_saved(tmp_path, language):
    """transformers renames `model.language_model.model` on loading, and back on saving."""
    model = tiny_model(language=language)
    model.save_pretrained(tmp_path / "first", full=True)
    load(tmp_path / "first").save_pretrained(tmp_path / "second", full=True)
    assert saved_keys(tmp_path / "first") == saved_keys(tmp_path / "second") <= model.state_dict().keys()
    CaptionerModel.from_pretrained(tmp_path / "second")  # whose names lack the prefix


def test_pretrained_weights_fetched_in_the_constructor_are_refused(tmp_path, model, towers):
    """A tutorial's way, which transformers has a sentence for: the towers' weights come from `compose` instead."""

    class Tutorial(CaptionerForConditionalGeneration):
        def __init__(self, config):
            super().__init__(config)
            self.core.vision_tower = AutoModel.from_pretrained(towers[0])

    model.save_pretrained(tmp_path, full=True)
    with pytest.raises(RuntimeError, match="anti-pattern"):
        Tutorial.from_pretrained(tmp_path)


# Trainer


def run_trainer(model, processor, directory: Path, steps: int, resume: str | None = None) -> None:
    """Trains on one picture for a few steps, with a checkpoint after each."""
    pixel_values = processor.image_processor(picture(), return_tensors="pt")["pixel_values"]
    collator = CaptionCollator(processor, lambda rows: {"pixel_values": pixel_values.repeat(len(rows), 1, 1, 1)})
    arguments = TrainingArguments(
        output_dir=str(directory),
        max_steps=steps,
        save_steps=1,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        learning_rate=1e-2,
        weight_decay=0.1,
        remove_unused_columns=False,
        use_cpu=True,
        report_to="none",
        disable_tqdm=True,
        logging_strategy="no",
        dataloader_pin_memory=False,
    )
    rows = [{"captions": [text, "two"]} for text in ("a dog", "x", "a cat runs", "it")]
    Trainer(model, arguments, data_collator=collator, train_dataset=rows).train(resume_from_checkpoint=resume)


def test_trainers_checkpoints_are_bridges_and_resume(tmp_path, towers, inputs):
    model, processor = compose(*towers)
    model.save_pretrained(tmp_path / "start")
    frozen = {name: p.clone() for name, p in model.state_dict().items() if name not in PROJECTOR}
    run_trainer(model, processor, tmp_path / "run", steps=2)
    assert saved_keys(tmp_path / "run/checkpoint-1") == PROJECTOR
    assert all(model.state_dict()[name].equal(weight) for name, weight in frozen.items())
    assert_equal(load(tmp_path / "run/checkpoint-2"), model.eval(), inputs)

    resumed = load(tmp_path / "start")
    run_trainer(resumed, processor, tmp_path / "run", steps=2, resume=str(tmp_path / "run/checkpoint-1"))
    assert_equal(resumed.eval(), model, inputs)

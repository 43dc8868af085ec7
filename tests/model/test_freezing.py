"""Policies: what each trains, what a bridge carries of it, and adapters."""

import copy
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    EOS,
    LANGUAGE,
    OTHER_LANGUAGE,
    PROJECTOR,
    VISION,
    picture,
    pixels,
    save_language_model,
    save_vision_tower,
    tiny_model,
    tiny_processor,
)

from vlm_caption import Captioner, CaptionerForConditionalGeneration, CaptionerModel, compose
from vlm_caption.core.errors import CheckpointError
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.features.cache import features_key
from vlm_caption.model.adapters import adapted_layers, adapter_targets, is_adapter
from vlm_caption.model.blocks import find_blocks, last_blocks
from vlm_caption.model.freezing import ModulePolicy, module_of, policies_of, set_policies
from vlm_caption.towers import checkpoints

FROZEN, FULL = ModulePolicy("frozen"), ModulePolicy("full")
LORA = ModulePolicy("lora", rank=3)
LAST = ModulePolicy("last_n", layers=1)


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> tuple[str, str]:
    """Folders of a pretrained vision tower and a pretrained language model."""
    root = tmp_path_factory.mktemp("towers")
    return save_vision_tower(root / "vision", "vit_cls"), save_language_model(root / "language")


@pytest.fixture(scope="module")
def inputs(towers) -> dict[str, torch.Tensor]:
    processor = compose(*towers, pooled_feature="cls")[1]
    return processor(images=[picture(0), picture(1)], text="A", return_tensors="pt")


@pytest.fixture
def model(towers) -> CaptionerForConditionalGeneration:
    return compose(*towers, pooled_feature="cls")[0].eval()


def load(directory: Path, **settings) -> CaptionerForConditionalGeneration:
    return CaptionerForConditionalGeneration.from_pretrained(directory, **settings)


def saved_keys(directory: Path) -> set[str]:
    return set(load_file(directory / "model.safetensors"))


def trained_keys(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def train_steps(model: CaptionerForConditionalGeneration, steps: int = 2) -> None:
    """A few steps on two images, of all that gets a gradient."""
    ids = model.core.image_prompt(2)
    ids = torch.cat([ids, torch.tensor([[5, 6, EOS], [7, 8, EOS]])], dim=1)
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
    model.train()
    for _ in range(steps):
        model(input_ids=ids, pixel_values=pixels(), labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()


def logits(model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    with torch.no_grad():
        return model(**inputs).logits


def assert_same(found: torch.nn.Module, expected: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> None:
    """The same weights, to the last bit, and the same outputs, up to where a tensor lies in memory."""
    state = expected.state_dict()
    assert found.state_dict().keys() == state.keys()
    assert [name for name, tensor in found.state_dict().items() if not tensor.equal(state[name])] == []
    torch.testing.assert_close(logits(found, inputs), logits(expected, inputs), rtol=1e-5, atol=1e-5)


def changed_keys(before: dict[str, torch.Tensor], model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if not parameter.equal(before[name])}


# What is trained


@pytest.mark.parametrize("vision", [FROZEN, LORA, LAST, FULL], ids=lambda policy: policy.train)
@pytest.mark.parametrize("language", [FROZEN, LORA, LAST, FULL], ids=lambda policy: policy.train)
def test_each_policy_trains_what_it_says_and_nothing_else(vision, language):
    model = tiny_model("vit_cls", "llama")
    set_policies(model, {"vision": vision, "projector": FULL, "language": language})
    assert policies_of(model.config)["language"].train == language.train
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train_steps(model)
    changed = changed_keys(before, model)
    assert changed <= trained_keys(model)
    # ViT's pooler is not what the captioner takes, and gets no gradient.
    assert {name for name in trained_keys(model) - changed if ".pooler." not in name} == set()
    assert changed >= PROJECTOR
    for module, policy, last in (
        ("vision", vision, ("core.vision_tower.encoder.layer.1.", "core.vision_tower.layernorm.", ".layers.1.")),
        ("language", language, ("core.language_model.model.layers.1.", "core.language_model.model.norm.")),
    ):
        own = {name for name in changed if module_of(name) == module}
        everything = {name for name in before if module_of(name) == module and ".pooler." not in name}
        if policy is FROZEN:
            assert own == set()
        elif policy is FULL:
            assert own == everything
        elif policy is LORA:
            assert own == {name for name in everything if is_adapter(name)} != set()
        else:
            assert own == {name for name in everything if any(part in name for part in last)} != set()


def test_a_frozen_projector_stays_with_its_learned_vectors():
    model = tiny_model(image_start="learned")
    set_policies(model, {"projector": FROZEN, "language": LAST})
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train_steps(model)
    assert {module_of(name) for name in changed_keys(before, model)} == {"language"}


def test_learned_vectors_are_trained_with_the_projector():
    model = tiny_model(image_start="learned")
    before = {name: parameter.clone() for name, parameter in model.named_parameters()}
    train_steps(model)
    assert changed_keys(before, model) == PROJECTOR | {"core.image_start"}


@pytest.mark.parametrize("family", sorted(VISION))
def test_the_last_block_and_the_norm_behind_are_found_in_every_vision_tower(family):
    tower = tiny_model(family).core.vision_tower
    name, blocks = find_blocks(tower)
    assert len(blocks) == 2
    block, *norms = last_blocks(tower, 1)
    assert block is blocks[-1]
    names = [key for key, module in tower.named_modules() if any(module is norm for norm in norms)]
    assert len(names) == (0 if family == "resnet" else 1)
    assert not any("head" in key or "pre" in key or key.startswith(f"{name}.") for key in names)


@pytest.mark.parametrize("family", sorted(LANGUAGE | OTHER_LANGUAGE))
def test_the_last_block_and_the_norm_behind_are_found_in_every_language_model(family):
    model = tiny_model(language=family)
    block, norm = last_blocks(model.core.language_model, 1)
    assert block is find_blocks(model.core.language_model)[1][1]
    assert "Norm" in type(norm).__name__
    own = {id(parameter) for module in (block, norm) for parameter in module.parameters()}
    assert id(model.get_input_embeddings().weight) not in own
    assert id(model.get_output_embeddings().weight) not in own


@pytest.mark.parametrize(
    ("module", "policy", "sentence"),
    [
        ("projector", LORA, "projector: lora is for towers"),
        ("vision", ModulePolicy("last_n"), "vision: last_n needs layers"),
        ("language", ModulePolicy("last_n", layers=3), "GPT2LMHeadModel has 2 blocks, and 3 are to be trained"),
        ("language", ModulePolicy("lora", rank=0), "language: the rank of an adapter must be at least 1, got 0"),
        ("language", ModulePolicy("lora", dropout=1.0), "language: the dropout of an adapter must be .* got 1.0"),
        ("language", ModulePolicy("lora", targets=["q_proj"]), "no linear layers 'q_proj'; they have c_attn, c_fc, c"),
    ],
)
def test_a_policy_that_does_not_fit_is_refused_and_changes_nothing(module, policy, sentence):
    model = tiny_model()
    before, trained = model.config.to_dict(), trained_keys(model)
    with pytest.raises(ValueError, match=sentence):
        set_policies(model, {module: policy})
    assert (model.config.to_dict(), trained_keys(model)) == (before, trained)


# Dropout


def test_only_what_is_trained_of_a_tower_is_ever_in_train_mode():
    model = tiny_model("vit_cls")
    set_policies(model, {"vision": LAST, "language": ModulePolicy("lora", dropout=0.5)})
    model.train()
    modules = dict(model.core.named_modules())
    in_train_mode = {name for name, module in modules.items() if module.training}
    _, vision_blocks = find_blocks(model.core.vision_tower)
    last = {id(module) for block in last_blocks(model.core.vision_tower, 1) for module in block.modules()}
    for name, module in modules.items():
        if name.startswith("vision_tower"):
            assert (name in in_train_mode) == (id(module) in last), name
        elif name.startswith("language_model"):
            assert (name in in_train_mode) == any(key in name for key in ("lora_A", "lora_B", "lora_d")), name
    assert len(vision_blocks) == 2
    model.eval()
    assert not any(module.training for module in model.modules())


def test_an_adapters_dropout_is_silent_in_eval_mode_and_where_the_adapter_is_frozen():
    model = tiny_model()
    set_policies(model, {"language": ModulePolicy("lora", dropout=0.5)})
    draw_adapters(model)
    inputs = {"input_ids": model.core.image_prompt(2), "pixel_values": pixels()}
    first, second = (logits(model.train(), inputs) for _ in range(2))
    assert not first.equal(second)
    assert logits(model.eval(), inputs).equal(logits(model, inputs))
    set_policies(model, {"language": FROZEN})
    assert logits(model.train(), inputs).equal(logits(model.eval(), inputs))


# Bridges


def draw_adapters(model: CaptionerForConditionalGeneration) -> None:
    """A fresh adapter changes nothing; these do."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if is_adapter(name):
                parameter.normal_(std=0.3)


def test_a_bridge_carries_the_trained_blocks_alone(tmp_path, model, inputs):
    set_policies(model, {"vision": LAST, "language": LAST})
    train_steps(model)
    model.save_pretrained(tmp_path / "one")
    assert saved_keys(tmp_path / "one") == trained_keys(model)
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config["external_towers"] == ["vision_tower", "language_model"]
    assert {f"core.{name}" for name in config["trained_weights"]} == trained_keys(model) - PROJECTOR
    loaded = load(tmp_path / "one")
    assert_same(loaded, model, inputs)
    assert trained_keys(loaded) == trained_keys(model)
    loaded.save_pretrained(tmp_path / "two")
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(one[name].equal(two[name]) for name in one)


def test_a_bridge_carries_the_adapters_alone(tmp_path, model, inputs):
    set_policies(model, {"vision": ModulePolicy("lora", rank=2, alpha=5.0), "language": LORA})
    draw_adapters(model)
    model.save_pretrained(tmp_path / "one")
    adapters = {name for name in model.state_dict() if is_adapter(name)}
    assert saved_keys(tmp_path / "one") == PROJECTOR | adapters == trained_keys(model)
    config = json.loads((tmp_path / "one/config.json").read_text())
    assert config["text_adapter"] == {
        "rank": 3,
        "alpha": 6,
        "dropout": 0.0,
        "targets": ["c_attn", "c_fc", "c_proj"],
    }
    assert (config["vision_adapter"]["rank"], config["vision_adapter"]["alpha"]) == (2, 5.0)
    loaded = load(tmp_path / "one")
    assert_same(loaded, model, inputs)
    assert trained_keys(loaded) == trained_keys(model)
    loaded.save_pretrained(tmp_path / "two")
    assert saved_keys(tmp_path / "two") == saved_keys(tmp_path / "one")
    assert_same(load(tmp_path / "two"), model, inputs)


@pytest.mark.parametrize("language", LANGUAGE)
def test_adapters_of_every_language_model_come_back(tmp_path, towers, language):
    source = save_language_model(tmp_path / "language", language)
    model, processor = compose(towers[0], source, pooled_feature="cls")
    set_policies(model.eval(), {"language": LORA})
    draw_adapters(model)
    model.save_pretrained(tmp_path / "bridge")
    batch = processor(images=picture(), return_tensors="pt")
    assert_same(load(tmp_path / "bridge"), model, batch)
    expected = logits(model, batch)
    model.merge_adapters()
    torch.testing.assert_close(logits(model, batch), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("vision", sorted(VISION.keys() - {"clip_projection", "resnet"}))
def test_adapters_of_every_vision_tower_come_back(tmp_path, towers, vision):
    source = save_vision_tower(tmp_path / "vision", vision)
    model, processor = compose(source, towers[1], pooled_feature=VISION[vision].get("pooled_feature", "pooler_output"))
    set_policies(model.eval(), {"vision": LORA})
    draw_adapters(model)
    model.save_pretrained(tmp_path / "bridge")
    batch = processor(images=picture(), return_tensors="pt")
    assert_same(load(tmp_path / "bridge"), model, batch)


def test_adapters_of_towers_without_a_backbone_come_back(tmp_path):
    model = tiny_model("clip", "llama")
    set_policies(model, {"vision": LORA, "language": LORA})
    draw_adapters(model)
    batch = {"input_ids": model.core.image_prompt(2), "pixel_values": pixels()}
    model.save_pretrained(tmp_path / "all")
    loaded = load(tmp_path / "all")
    assert loaded.state_dict().keys() == model.state_dict().keys()
    assert_same(loaded, model, batch)


@pytest.mark.parametrize("policy", [FROZEN, LORA, LAST, FULL], ids=lambda policy: policy.train)
@pytest.mark.parametrize("vision", sorted(VISION))
def test_a_tower_of_random_weights_writes_the_same_captions_after_loading(tmp_path, vision, policy):
    model = tiny_model(vision, "llama")
    if (vision, policy) == ("resnet", LORA):
        with pytest.raises(
            ValueError, match="vision: The blocks of ResNetModel have no linear layers to put an adapter"
        ):
            set_policies(model, {"vision": policy})
        return
    set_policies(model, {"vision": policy, "language": policy})
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.generation_config.update(max_new_tokens=6, do_sample=False)
    written = model.generate(pixel_values=pixels())
    inputs = {"input_ids": written, "pixel_values": pixels()}
    for full in (False, True):
        model.save_pretrained(tmp_path, full=full)
        loaded = load(tmp_path)
        assert loaded.generate(pixel_values=pixels()).equal(written)
        torch.testing.assert_close(logits(loaded, inputs), logits(model, inputs), rtol=1e-4, atol=1e-4)


def test_the_headless_model_has_the_adapters_too(tmp_path, model, inputs):
    set_policies(model, {"language": LORA, "vision": LAST})
    draw_adapters(model)
    train_steps(model)
    model.save_pretrained(tmp_path / "head")
    core = CaptionerModel.from_pretrained(tmp_path / "head")
    with torch.no_grad():
        assert core(**inputs).last_hidden_state.equal(model.core(**inputs).last_hidden_state)
    core.save_pretrained(tmp_path / "core")
    assert_same(load(tmp_path / "core"), model, inputs)


@pytest.mark.parametrize("policy", [LORA, LAST], ids=lambda policy: policy.train)
def test_a_bridge_that_lacks_what_was_trained_is_refused(tmp_path, model, policy):
    set_policies(model, {"language": policy})
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors[max(name for name in tensors if "language_model" in name)]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"(lacks 1 weights of towers|holds other weights of adapters).* load it with"
    ):
        load(tmp_path)


def test_a_bridge_whose_towers_are_named_otherwise_is_refused(tmp_path, model):
    """As other versions of transformers do: the backbone's own weights would be taken without a word."""
    set_policies(model, {"language": LAST})
    model.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    tensors = {name.replace(".h.", ".layers."): tensor for name, tensor in tensors.items()}
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = model.config.from_pretrained(tmp_path)
    config.trained_weights = [name.replace(".h.", ".layers.") for name in config.trained_weights]
    with pytest.raises(ValueError, match=r"holds weights that its towers have not \(core\.language_model\."):
        load(tmp_path, config=config)


# What was trained once


@pytest.mark.parametrize("policy", [LAST, FULL], ids=lambda policy: policy.train)
def test_a_tower_trained_and_frozen_again_is_not_lost(tmp_path, model, inputs, policy):
    set_policies(model, {"language": policy})
    train_steps(model)
    set_policies(model, {"language": FROZEN})
    assert trained_keys(model) == PROJECTOR
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path), model, inputs)
    external = json.loads((tmp_path / "config.json").read_text())["external_towers"]
    assert external == ["vision_tower", "language_model"][: 1 if policy is FULL else 2]


@pytest.mark.parametrize("part", ["all", "a norm"])
def test_a_tower_thawed_by_hand_and_frozen_again_is_not_lost(tmp_path, model, inputs, part):
    language_model = model.core.language_model
    thawed = language_model if part == "all" else language_model.transformer.ln_f
    thawed.requires_grad_(True)
    train_steps(model)
    thawed.requires_grad_(False)
    model.save_pretrained(tmp_path)
    assert_same(load(tmp_path), model, inputs)
    others = saved_keys(tmp_path) - PROJECTOR
    if part == "all":
        assert len(others) == len(language_model.state_dict()) - 1  # the head is tied
    else:
        assert others == {f"core.language_model.transformer.ln_f.{kind}" for kind in ("weight", "bias")}


def test_a_tied_embedding_trained_by_hand_comes_back_tied(tmp_path, model, inputs):
    model.core.language_model.transformer.wte.weight.requires_grad_(True)
    train_steps(model)
    model.save_pretrained(tmp_path)
    assert saved_keys(tmp_path) == PROJECTOR | {"core.language_model.transformer.wte.weight"}
    loaded = load(tmp_path)
    assert loaded.get_output_embeddings().weight is loaded.get_input_embeddings().weight
    assert_same(loaded, model, inputs)


def test_an_adapter_beside_blocks_trained_before(tmp_path, model, inputs):
    set_policies(model, {"language": LAST})
    train_steps(model)
    set_policies(model, {"language": LORA})
    draw_adapters(model)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path)
    assert_same(loaded, model, inputs)
    assert trained_keys(loaded) == trained_keys(model)


def test_an_older_config_that_froze_nothing_trains_whole_towers():
    model = tiny_model(freeze_vision=False)
    assert policies_of(model.config)["vision"] == FULL
    assert {module_of(name) for name in trained_keys(model)} == {"vision", "projector"}


# Adapters


def test_adapters_added_are_trained_in_both_towers_and_freezing_the_towers_again_leaves_them_so():
    model = tiny_model("vit_cls")
    set_policies(model, {"vision": LORA, "language": LORA})
    draw_adapters(model)
    model.freeze_towers()
    ids = torch.cat([model.core.image_prompt(2), torch.tensor([[5, EOS], [7, EOS]])], dim=1)
    model.train()
    model(input_ids=ids, pixel_values=pixels(), labels=ids).loss.backward()
    adapters = {name: p for name, p in model.named_parameters() if is_adapter(name)}
    assert {module_of(name) for name in adapters} == {"vision", "language"}
    assert [name for name, p in adapters.items() if p.grad is None or not p.grad.any()] == []


def test_a_fresh_adapter_changes_no_output(model, inputs):
    before = logits(model, inputs)
    set_policies(model, {"vision": LORA, "language": LORA})
    assert logits(model, inputs).equal(before)
    assert all(p.dtype == torch.float32 for name, p in model.named_parameters() if is_adapter(name))


def test_adapters_stand_beside_the_linear_layers_of_the_blocks_alone():
    model = tiny_model("vit_cls", "phi3")
    set_policies(model, {"vision": LORA, "language": ModulePolicy("lora", targets=["qkv_proj"])})
    names = [name for name, _ in adapted_layers(model.core.language_model)]
    assert names == [f"model.layers.{layer}.self_attn.qkv_proj" for layer in (0, 1)]
    assert adapter_targets(model.core.language_model, None) == ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
    assert not any("pooler" in name for name, _ in adapted_layers(model.core.vision_tower))


def test_an_adapter_goes_on_or_is_merged_when_another_policy_follows(model, inputs):
    set_policies(model, {"language": LORA})
    draw_adapters(model)
    expected = logits(model, inputs)
    set_policies(model, {"language": FROZEN})
    assert logits(model, inputs).equal(expected)
    assert trained_keys(model) == PROJECTOR
    set_policies(model, {"language": LORA})
    assert logits(model, inputs).equal(expected)
    set_policies(model, {"language": ModulePolicy("lora", rank=3, alpha=0.0)})  # the same one, turned off
    assert not torch.allclose(logits(model, inputs), expected)
    set_policies(model, {"language": LORA})  # which says nothing of alpha
    assert model.config.text_adapter["alpha"] == 0.0
    set_policies(model, {"language": ModulePolicy("lora", rank=3, alpha=6.0)})
    for policy in (ModulePolicy("lora", rank=5), LAST, FULL):
        set_policies(model, {"language": policy})
        torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-4)
    assert not any(is_adapter(name) for name in model.state_dict())


def test_merging_leaves_the_outputs_and_a_bridge_of_the_merged_weights(tmp_path, model, inputs):
    set_policies(model, {"vision": LORA, "language": ModulePolicy("lora", rank=3, targets=["c_attn"])})
    draw_adapters(model)
    expected = logits(model, inputs)
    model.merge_adapters()
    torch.testing.assert_close(logits(model, inputs), expected, rtol=1e-4, atol=1e-4)
    model.save_pretrained(tmp_path)
    language = {name for name in saved_keys(tmp_path) if "language_model" in name}
    assert language == {f"core.language_model.transformer.h.{layer}.attn.c_attn.weight" for layer in (0, 1)}
    assert_same(load(tmp_path), model, inputs)


def test_a_full_checkpoint_has_its_adapters_merged_and_needs_no_peft(tmp_path, model, inputs, monkeypatch):
    set_policies(model, {"vision": LORA, "language": LORA})
    draw_adapters(model)
    expected, state, config = logits(model, inputs), copy.deepcopy(model.state_dict()), model.config.to_dict()
    model.save_pretrained(tmp_path / "full", full=True)
    assert all(tensor.equal(state[name]) for name, tensor in model.state_dict().items())
    assert model.config.text_adapter == config["text_adapter"]
    monkeypatch.setitem(sys.modules, "peft", None)
    monkeypatch.setattr(checkpoints, "load_towers", None)
    loaded = load(tmp_path / "full")
    assert not any(is_adapter(name) or ".base_layer." in name for name in loaded.state_dict())
    torch.testing.assert_close(logits(loaded, inputs), expected, rtol=1e-4, atol=1e-4)
    monkeypatch.undo()
    loaded.save_pretrained(tmp_path / "bridge")
    assert_same(load(tmp_path / "bridge"), loaded, inputs)


def test_without_peft_a_sentence_says_what_to_install(tmp_path, model, monkeypatch):
    set_policies(model, {"language": LORA})
    model.save_pretrained(tmp_path)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"LoRA adapters need peft: pip install peft"):
        load(tmp_path)
    tiny_processor(model.config).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=r"cannot be loaded: LoRA adapters need peft"):
        Captioner.from_pretrained(tmp_path)


@pytest.mark.parametrize("language", ["gpt2", "llama", "phi3"])
def test_with_adapters_packed_captions_have_the_loss_and_gradients_of_rows_of_their_own(language):
    model = tiny_model("vit_cls", language)
    set_policies(model, {"vision": LORA, "language": LORA})
    draw_adapters(model)
    collator = CaptionCollator(tiny_processor(model.config), lambda rows: {"pixel_values": pixels(len(rows))})
    captions = ["a dog", "it", "two cats run"]
    results = []
    for rows in ([captions], [[caption] for caption in captions]):
        model.zero_grad()
        model.train()
        total = 0.0
        for texts in rows:
            batch = collator([{"captions": texts}])
            loss = model(**batch, num_items_in_batch=1).loss
            loss.backward()
            total += loss.item()
        results.append((total, {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}))
    (packed, packed_gradients), (single, single_gradients) = results
    assert packed == pytest.approx(single, rel=1e-5)
    assert packed_gradients.keys() == single_gradients.keys() == trained_keys(model)
    for name, gradient in packed_gradients.items():
        torch.testing.assert_close(gradient, single_gradients[name], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("language", ["gpt2", "llama"])
def test_with_adapters_the_cache_changes_no_token(language):
    model = tiny_model("vit_cls", language)
    set_policies(model, {"vision": LORA, "language": LORA})
    plain = model.generate(pixel_values=pixels(), max_new_tokens=8, do_sample=False)
    draw_adapters(model)
    cached, uncached = (
        model.generate(pixel_values=pixels(), max_new_tokens=8, do_sample=False, use_cache=use_cache)
        for use_cache in (True, False)
    )
    assert cached.equal(uncached)
    assert not cached.equal(plain)


def test_cached_features_are_keyed_by_the_adapter_as_well(model):
    processor = tiny_processor(model.config)
    plain = features_key(model, processor)
    set_policies(model, {"vision": LORA})
    draw_adapters(model)
    first = features_key(model, processor)
    draw_adapters(model)
    second = features_key(model, processor)
    set_policies(model, {"vision": ModulePolicy("lora", rank=LORA.rank, alpha=0.0)})
    assert len({plain, first, second, features_key(model, processor)}) == 4


def test_an_adapter_beside_a_tower_in_bfloat16_stays_in_float32(tmp_path, model, inputs):
    set_policies(model, {"language": LORA})
    draw_adapters(model)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path, dtype=torch.bfloat16)
    adapters = {p.dtype for name, p in loaded.named_parameters() if is_adapter(name)}
    assert adapters == {torch.float32}
    assert logits(loaded, inputs).isfinite().all()

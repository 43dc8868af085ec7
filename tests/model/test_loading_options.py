"""What `from_pretrained` of any transformers model takes: dtypes, devices, attention, quantisation."""

import json
import shutil

import pytest
import torch
from accelerate import init_empty_weights, load_checkpoint_and_dispatch
from tiny_models import BOS, IMAGE, VOCAB_SIZE, pixels, save_language_model, save_vision_tower
from transformers import AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration, compose

GREEDY = {"max_new_tokens": 6, "do_sample": False}


@pytest.fixture(scope="module", params=["bridge", "full"])
def checkpoint(request, tmp_path_factory) -> str:
    """A checkpoint of each kind; its language model is wide enough for 4-bit blocks of 64."""
    folder = tmp_path_factory.mktemp(request.param)
    wide = {"hidden_size": 128, "intermediate_size": 128}
    vision = save_vision_tower(folder / "vision")
    language = save_language_model(folder / "language", "llama", **wide)
    torch.manual_seed(0)
    model, _ = compose(vision, language)
    model.save_pretrained(folder / "checkpoint", full=request.param == "full")
    return str(folder / "checkpoint")


@pytest.fixture(scope="module")
def expected(checkpoint) -> torch.Tensor:
    return load(checkpoint).generate(pixel_values=pixels(), **GREEDY)


def load(checkpoint: str, **options) -> CaptionerForConditionalGeneration:
    return CaptionerForConditionalGeneration.from_pretrained(checkpoint, **options)


def load_config(checkpoint) -> CaptionerConfig:
    return CaptionerConfig.from_pretrained(checkpoint)


def dtypes(model: CaptionerForConditionalGeneration) -> dict[str, set[torch.dtype]]:
    """The dtypes of each part."""
    return {name: {parameter.dtype for parameter in part.parameters()} for name, part in model.core.named_children()}


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
@pytest.mark.parametrize("value", [torch.bfloat16, "bfloat16"], ids=str)
def test_bfloat16_is_for_the_whole_model(checkpoint, name, value):
    model = load(checkpoint, **{name: value})
    assert set().union(*dtypes(model).values()) == {torch.bfloat16}
    assert model.generate(pixel_values=pixels(), **GREEDY).shape[0] == 2


def test_the_projector_stays_in_float32_beside_towers_in_float16(checkpoint):
    model = load(checkpoint, dtype="float16")
    assert dtypes(model) == {
        "vision_tower": {torch.float16},
        "multi_modal_projector": {torch.float32},
        "language_model": {torch.float16},
    }
    assert model.generate(pixel_values=pixels(), **GREEDY).shape[0] == 2


def test_dtype_auto_is_the_dtype_saved(checkpoint):
    assert set().union(*dtypes(load(checkpoint, dtype="auto")).values()) == {torch.float32}


@pytest.mark.parametrize("offloaded", ["vision_tower", "multi_modal_projector", "language_model"])
def test_every_part_can_be_offloaded_to_disk(checkpoint, expected, tmp_path, offloaded):
    parts = ("vision_tower", "multi_modal_projector", "language_model")
    device_map = {f"core.{part}": "disk" if part == offloaded else "cpu" for part in parts}
    model = load(checkpoint, device_map=device_map, offload_folder=str(tmp_path))
    assert next(getattr(model.core, offloaded).parameters()).is_meta
    assert torch.equal(model.generate(pixel_values=pixels(), **GREEDY), expected)


def test_device_map_auto_changes_nothing(checkpoint, expected):
    assert torch.equal(load(checkpoint, device_map="auto").generate(pixel_values=pixels(), **GREEDY), expected)


def test_accelerate_dispatches_a_full_checkpoint(checkpoint, expected, tmp_path):
    whole = tmp_path / "whole"
    source = load(checkpoint)
    source.save_pretrained(whole, full=True)
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(source.config)
    model = load_checkpoint_and_dispatch(
        model,
        str(whole),
        device_map={"core.vision_tower": "disk", "core.multi_modal_projector": "cpu", "core.language_model": "cpu"},
        offload_folder=str(tmp_path / "offload"),
    ).eval()
    assert torch.equal(model.generate(pixel_values=pixels(), **GREEDY), expected)


@pytest.mark.parametrize(
    ("asked", "vision", "language"),
    [
        ("eager", "eager", "eager"),
        ({"vision_config": "eager", "text_config": "sdpa"}, "eager", "sdpa"),
        ({"vision_config": "sdpa", "text_config": "eager"}, "sdpa", "eager"),
    ],
    ids=str,
)
def test_attention_is_chosen_for_both_towers_or_each(checkpoint, expected, asked, vision, language):
    for model in (load(checkpoint, attn_implementation=asked), load(checkpoint)):
        model.set_attn_implementation(asked)  # for the first one again, which must change nothing
        assert model.core.vision_tower.config._attn_implementation == vision
        assert model.core.language_model.config._attn_implementation == language
        assert torch.equal(model.generate(pixel_values=pixels(), **GREEDY), expected)


def test_eager_attention_gives_attention_maps(checkpoint):
    model = load(checkpoint, attn_implementation="eager")
    ids = torch.tensor([[BOS, IMAGE, 5, 6]])
    outputs = model(input_ids=ids, pixel_values=pixels(1), output_attentions=True, output_hidden_states=True)
    layers = model.config.text_config.num_hidden_layers
    assert [attention.shape[-2:] for attention in outputs.attentions] == [(4, 4)] * layers
    assert len(outputs.hidden_states) == layers + 1


def quantization(name: str):
    """A quantisation and the class of weights or layers that tells that it was done."""
    if name == "torchao int8":
        torchao = pytest.importorskip("torchao.quantization", reason="torchao is not installed")
        return TorchAoConfig(torchao.Int8WeightOnlyConfig())
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    return BitsAndBytesConfig(load_in_8bit=name == "bitsandbytes int8", load_in_4bit=name == "bitsandbytes int4")


@pytest.mark.filterwarnings("ignore")  # of the quantisers, about casts
@pytest.mark.parametrize("name", ["torchao int8", "bitsandbytes int8", "bitsandbytes int4", "as a dict"])
def test_quantisation_is_of_the_language_model_alone(checkpoint, name):
    settings = quantization(name) if name != "as a dict" else quantization("bitsandbytes int8").to_dict()
    plain, model = load(checkpoint), load(checkpoint, quantization_config=settings)
    ids = torch.tensor([[BOS, IMAGE, 5, 6], [BOS, IMAGE, 7, 8]])
    for part in ("vision_tower", "multi_modal_projector"):
        for key, tensor in getattr(plain.core, part).state_dict().items():
            assert torch.equal(getattr(model.core, part).state_dict()[key], tensor), key
    layer, reference = (m.core.language_model.model.layers[0].mlp.up_proj for m in (model, plain))
    assert type(layer) is not type(reference) or type(layer.weight.data) is not torch.Tensor
    with torch.no_grad():
        difference = (model(input_ids=ids, pixel_values=pixels()).logits - plain(ids, pixels()).logits).abs().max()
    assert 0 < difference < 12
    assert model.generate(pixel_values=pixels(), **GREEDY).shape[0] == 2
    model.train()
    model(input_ids=ids, pixel_values=pixels(), labels=ids.masked_fill(ids == IMAGE, -100)).loss.backward()
    trained = {key for key, parameter in model.named_parameters() if parameter.grad is not None}
    assert trained == {key for key, _ in model.named_parameters() if "multi_modal_projector" in key}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["bitsandbytes int8", "bitsandbytes int4"])
def test_a_bridge_of_a_quantised_model_is_a_bridge_like_any_other(checkpoint, expected, tmp_path, name):
    model = load(checkpoint, quantization_config=quantization(name))
    if not load_config(checkpoint).external_towers:
        pytest.skip("its towers can be fetched from nowhere")
    model.save_pretrained(tmp_path)
    assert not hasattr(load_config(tmp_path), "quantization_config")
    assert model.config.quantization_config is not None  # the model's own stays
    assert torch.equal(load(tmp_path).generate(pixel_values=pixels(), **GREEDY), expected)
    again = load(tmp_path, quantization_config=quantization(name))
    inputs = {"input_ids": torch.tensor([[BOS, IMAGE, 5, 6]]), "pixel_values": pixels(1)}
    with torch.no_grad():
        assert torch.equal(again(**inputs).logits, model(**inputs).logits)


def test_a_quantisation_in_the_config_of_a_bridge_is_passed_over(checkpoint, expected, tmp_path):
    if not load_config(checkpoint).external_towers:
        pytest.skip("of a full checkpoint it says what is in it")
    folder = shutil.copytree(checkpoint, tmp_path / "old")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(
        json.dumps(config | {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}})
    )
    assert torch.equal(load(str(folder)).generate(pixel_values=pixels(), **GREEDY), expected)


def test_a_quantisation_that_names_what_to_skip_is_left_alone(checkpoint):
    pytest.importorskip("torchao.quantization", reason="torchao is not installed")
    config = quantization("torchao int8")
    config.modules_to_not_convert = ["core.multi_modal_projector"]
    load(checkpoint, quantization_config=config)
    assert config.modules_to_not_convert == ["core.multi_modal_projector"]


def test_a_backbone_cannot_be_named_for_a_tower_that_the_checkpoint_holds(tmp_path, checkpoint):
    load(checkpoint).save_pretrained(tmp_path, full=True)
    with pytest.raises(ValueError, match=r"holds its vision_tower itself: leave out vision_backbone='elsewhere'"):
        load(str(tmp_path), vision_backbone="elsewhere")


def test_the_vocabulary_is_the_language_models(checkpoint):
    assert load(checkpoint).get_input_embeddings().num_embeddings == VOCAB_SIZE

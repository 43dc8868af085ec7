"""CaptionerConfig: its defaults, what it derives, what it refuses, and its JSON."""

import json

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from tiny_models import LANGUAGE, VOCAB_SIZE, tiny_config
from transformers import AutoConfig

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration
from vlm_caption.model.projectors import MultiModalProjector


def test_default_is_a_vit_of_512_and_gpt2():
    config = CaptionerConfig()
    assert config.vision_config.architecture == "vit_mediumd_patch16_reg4_gap_384"
    assert (config.vision_feature_size, config.text_config.hidden_size) == (512, 768)
    assert (config.text_config.model_type, config.text_config.vocab_size) == ("gpt2", 50257)
    assert (config.image_token_id, config.image_seq_length) == (50257, 1)
    assert (config.image_start, config.start_token_id) == ("bos", 50256)


def test_default_trains_1968384_parameters():
    with torch.device("meta"):
        model = CaptionerForConditionalGeneration(CaptionerConfig())
    trained = {name: p.shape for name, p in model.named_parameters() if p.requires_grad}
    assert sum(shape.numel() for shape in trained.values()) == 1_968_384
    assert trained == {
        "core.multi_modal_projector.linear_1.weight": (1536, 512),
        "core.multi_modal_projector.linear_1.bias": (1536,),
        "core.multi_modal_projector.linear_2.weight": (768, 1536),
        "core.multi_modal_projector.linear_2.bias": (768,),
    }


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True, "image_start": "learned"},
        {
            "vision_backbone": {"name": "org/vision", "revision": "v1", "fingerprint": "sha256:0"},
            "external_towers": ["vision_tower"],
            "freeze_language": False,
            "projector_expansion": 2,
            "projector_hidden_act": "relu",
            "image_token_id": VOCAB_SIZE + 5,
        },
    ],
)
def test_json_round_trip_changes_nothing(tmp_path, settings):
    config = tiny_config("dinov2", "llama", **settings)
    config.save_pretrained(tmp_path)
    loaded = CaptionerConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert (loaded.image_seq_length, loaded.start_token_id) == (config.image_seq_length, config.start_token_id)
    assert json.loads((tmp_path / "config.json").read_text())["model_type"] == "vlm_captioner"


def test_towers_may_be_config_objects():
    config = CaptionerConfig(
        vision_config=AutoConfig.for_model("dinov2", hidden_size=48), text_config=AutoConfig.for_model("gpt2")
    )
    assert config.vision_feature_size == 48


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("image_grid", "4"),
        ("image_tokens", "cls"),
        ("image_start", "eos"),
        ("pooled_feature", "mean"),
        ("projector_expansion", 2.5),
        ("freeze_vision", "yes"),
        ("external_towers", "vision_tower"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused(field, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=field):
        tiny_config(**{field: value})


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"text_config": {"bos_token_id": None}, "image_start": "bos"}, "gpt2 names none: choose 'learned' or 'none'"),
        ({"image_grid": 2}, "image_grid and pooled_in_front belong to image_tokens='patches'"),
        ({"pooled_in_front": True}, "image_grid and pooled_in_front belong to image_tokens='patches'"),
        ({"image_tokens": "patches", "image_grid": 0}, "image_grid must be at least 1, got 0"),
        ({"image_tokens": "patches", "pooled_feature": "image_embeds"}, "image_embeds' is not as wide as the patches"),
        ({"projector_expansion": 0}, "projector_expansion must be at least 1, got 0"),
        (
            {"image_token_id": VOCAB_SIZE - 1},
            f"image_token_id {VOCAB_SIZE - 1} lies inside .* vocabulary of {VOCAB_SIZE}",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_config(**settings)


@pytest.mark.parametrize("setting", [{"max_new_tokens": 20}, {"num_beams": 3}, {"do_sample": True}])
def test_generation_settings_belong_elsewhere(setting):
    (name,) = setting
    with pytest.raises(ValueError, match=f"{name}: .* Set it in model.generation_config, or pass it to generate"):
        tiny_config(**setting)


def test_a_tower_without_a_width_is_refused_when_the_projector_is_built():
    config = tiny_config("resnet", vision_config={"num_features": None})
    with pytest.raises(
        ValueError, match="resnet vision config names no feature width: set its hidden_size or num_fea"
    ):
        MultiModalProjector(config)


def test_all_patches_of_a_tower_of_unknown_image_size_are_refused():
    config = tiny_config("timm", image_tokens="patches", vision_config={"image_size": None})
    with pytest.raises(
        ValueError, match=r"timm_wrapper vision config does not say how many patches .* set image_grid"
    ):
        _ = config.image_seq_length
    config.image_grid = 3
    assert config.image_seq_length == 9


def test_image_start_follows_the_language_model():
    assert tiny_config().image_start == "bos"
    without = tiny_config(text_config={"bos_token_id": None})
    assert (without.image_start, without.start_token_id) == ("none", None)
    assert tiny_config(image_start="learned").start_token_id is None


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({}, 1),
        ({"image_start": "learned"}, 2),
        ({"image_tokens": "patches"}, 16),
        ({"image_tokens": "patches", "image_grid": 3}, 9),
        ({"image_tokens": "patches", "image_grid": 3, "pooled_in_front": True}, 10),
        ({"image_tokens": "patches", "image_grid": 3, "pooled_in_front": True, "image_start": "learned"}, 11),
    ],
)
def test_image_seq_length_counts_every_placeholder(settings, length):
    assert tiny_config(**settings).image_seq_length == length


def test_image_embeds_have_the_projections_width():
    assert tiny_config("clip_projection").vision_feature_size == 12


@pytest.mark.parametrize(("language", "tied"), [("gpt2", True), ("llama", False), ("qwen2", True)])
def test_tying_is_the_language_models_own(language, tied):
    assert LANGUAGE[language].get("tie_word_embeddings", tied) is tied
    assert tiny_config(language=language).tie_word_embeddings is tied

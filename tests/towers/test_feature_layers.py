"""`vision_feature_layer`: hidden states of chosen layers of the vision tower, normalised and side by side."""

import copy
from typing import Any

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors.torch import load_file, save_file
from test_vision_towers import OTHER_VISION
from tiny_models import (
    IMAGE_SIZE,
    LANGUAGE,
    PATCHES,
    PREFIX_TOKENS,
    VISION,
    VISION_WIDTH,
    build,
    picture,
    pixels,
    save_language_model,
    save_vision_tower,
    tiny_config,
    tiny_model,
    tiny_processor,
)

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration, CaptionerProcessor, compose
from vlm_caption.features.cache import features_key
from vlm_caption.model.blocks import find_blocks
from vlm_caption.model.freezing import ModulePolicy, set_policies

# The config of each family whose layers can be chosen, and the tokens in front of its patches.
FAMILIES: dict[str, tuple[dict[str, Any], int]] = {
    name: (VISION[name]["vision_config"], count) for name, count in PREFIX_TOKENS.items() if "timm" not in name
} | {name: ({"model_type": name, **fields}, count or 0) for name, (fields, count, _) in OTHER_VISION.items()}

SWIN = {
    **{"model_type": "swin", "image_size": IMAGE_SIZE, "patch_size": 4, "embed_dim": 8, "window_size": 2},
    **{"depths": [1, 1, 1], "num_heads": [1, 2, 2]},
}

every_family = pytest.mark.parametrize("family", FAMILIES)


def of_config(vision_config: dict[str, Any], **settings: Any) -> CaptionerForConditionalGeneration:
    fields = {"vision_config": copy.deepcopy(vision_config), "text_config": copy.deepcopy(LANGUAGE["gpt2"])}
    return build(CaptionerConfig(**(fields | settings)))


def states(model: CaptionerForConditionalGeneration, *blocks: int) -> torch.Tensor:
    """What these blocks of the tower give for `pixels()`, each normalised by hand, side by side."""
    found = {}
    for index in blocks:

        def keep(module, inputs, output, index=index):
            found[index] = output if isinstance(output, torch.Tensor) else output[0]

        find_blocks(model.core.vision_tower)[1][index].register_forward_hook(keep)
    with torch.no_grad():
        model.core.vision_tower(pixels())
    normal = [
        (state - state.mean(-1, keepdim=True)) / (state.var(-1, keepdim=True, correction=0) + 1e-5).sqrt()
        for state in (found[index] for index in blocks)
    ]
    return torch.cat(normal, dim=-1)


# What is taken


@every_family
def test_patches_are_the_blocks_states_normalised_and_side_by_side(family):
    config, _ = FAMILIES[family]
    model = of_config(config, image_tokens="patches", vision_feature_layer=[1, 2])
    tokens = model.core.encode_images(pixels()).pooler_output
    assert tokens.shape == (2, PATCHES, 2 * VISION_WIDTH) == (2, PATCHES, model.config.vision_feature_size)
    torch.testing.assert_close(tokens, states(model, 0, 1)[:, -PATCHES:])
    assert model.generate(pixel_values=pixels(), max_new_tokens=2).shape[0] == 2


@pytest.mark.parametrize(("layer", "block"), [(1, 0), (2, 1), (-1, 1), (-2, 0), ([-1], 1)])
def test_layers_count_from_either_end(layer, block):
    model = tiny_model("dinov2", image_tokens="patches", vision_feature_layer=layer)
    assert model.config.vision_feature_size == VISION_WIDTH
    torch.testing.assert_close(model.core.encode_images(pixels()).pooler_output, states(model, block)[:, 1:])


def test_layers_stand_in_the_order_given():
    model = tiny_model("dinov2", image_tokens="patches", vision_feature_layer=[2, 1])
    torch.testing.assert_close(model.core.encode_images(pixels()).pooler_output, states(model, 1, 0)[:, 1:])


@pytest.mark.parametrize("family", [family for family, (_, prefix) in FAMILIES.items() if prefix])
@pytest.mark.parametrize("pooled_feature", ["pooler_output", "cls"])
def test_the_pooled_vector_is_the_class_token_of_each_layer(family, pooled_feature):
    chosen = {"vision_feature_layer": [1, -1], "pooled_feature": pooled_feature}
    alone = of_config(FAMILIES[family][0], **chosen)
    expected = states(alone, 0, 1)[:, :1]
    torch.testing.assert_close(alone.core.encode_images(pixels()).pooler_output, expected)
    model = of_config(FAMILIES[family][0], image_tokens="patches", image_grid=2, pooled_in_front=True, **chosen)
    tokens = model.core.encode_images(pixels()).pooler_output
    assert tokens.shape == (2, 5, 2 * VISION_WIDTH)
    torch.testing.assert_close(tokens[:, :1], expected)
    grid = states(model, 0, 1)[:, -PATCHES:].reshape(2, 2, 2, 2, 2, -1).mean(dim=(2, 4)).flatten(1, 2)
    torch.testing.assert_close(tokens[:, 1:], grid)


@pytest.mark.parametrize("family", [family for family in FAMILIES if family != "ijepa"])
def test_all_tokens_of_the_layers(family):
    config, prefix = FAMILIES[family]
    model = of_config(config, image_tokens="all", vision_feature_layer=[1, 2])
    tokens = model.core.encode_images(pixels()).pooler_output
    assert tokens.shape[1] == model.config.image_seq_length == prefix + PATCHES
    torch.testing.assert_close(tokens, states(model, 0, 1))


def test_without_chosen_layers_the_tower_gives_its_output_as_before():
    model = tiny_model("dinov2", image_tokens="patches", vision_feature_layer=None)
    assert model.config.vision_feature_layers == []
    hidden = model.core.vision_tower(pixels()).last_hidden_state
    outputs = model.core.encode_images(pixels())
    assert outputs.pooler_output.equal(hidden[:, 1:])
    assert outputs.hidden_states is None


def test_states_of_all_layers_are_returned_only_where_they_are_asked_for():
    model = tiny_model("dinov2", image_tokens="patches", vision_feature_layer=1)
    assert model.core.encode_images(pixels()).hidden_states is None
    assert len(model.core.encode_images(pixels(), output_hidden_states=True).hidden_states) == 3


# What is refused


@pytest.mark.parametrize(
    ("family", "settings", "sentence"),
    [
        ("dinov2", {"vision_feature_layer": 3}, "must name layers of the dinov2 tower, from 1 to 2 or from -1"),
        ("dinov2", {"vision_feature_layer": [1, -3]}, r"vision_feature_layer=\[1, -3\] must name layers"),
        ("dinov2", {"vision_feature_layer": 0}, "must name layers"),
        ("dinov2", {"vision_feature_layer": []}, "must name layers"),
        ("dinov2", {"vision_feature_layer": [2, -1]}, "names a layer twice: name each once"),
        ("clip_projection", {"vision_feature_layer": 1}, "takes no image_embeds, which are made of the last layer"),
        ("siglip", {"vision_feature_layer": 1}, "the siglip_vision_model tower is not known to have one"),
        ("siglip", {"vision_feature_layer": 1, "pooled_feature": "cls"}, "choose image_tokens='patches' without"),
        ("timm", {"vision_feature_layer": 1}, "timm's towers give its patches alone: leave out the setting"),
    ],
)
def test_what_a_tower_cannot_give_is_refused(family, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_config(family, **settings)


@pytest.mark.parametrize("value", ["1", 1.5, [1, "2"]])
def test_what_is_no_layer_is_refused(value):
    with pytest.raises(StrictDataclassError, match="vision_feature_layer"):
        tiny_config("dinov2", vision_feature_layer=value)


def test_vectors_have_no_layers():
    with pytest.raises(ValueError, match="there is no vision tower: leave them out"):
        CaptionerConfig(text_config=copy.deepcopy(LANGUAGE["gpt2"]), feature_size=4, vision_feature_layer=1)


@pytest.mark.parametrize("config", [SWIN, VISION["resnet"]["vision_config"]])
def test_towers_whose_layers_differ_in_shape_are_refused(config):
    model = of_config(config, image_tokens="patches", image_grid=2, vision_feature_layer=[1, 2])
    with pytest.raises(ValueError, match="gives no hidden states of all its tokens for vision_feature_layer"):
        model.core.encode_images(pixels())


def test_training_blocks_behind_the_chosen_layers_is_refused():
    model = tiny_model("dinov2", image_tokens="patches", vision_feature_layer=[1])
    with pytest.raises(ValueError, match=r"^vision: the features are those .* the last 1 of 2 blocks do not change"):
        set_policies(model, {"vision": ModulePolicy("last_n", layers=1)})
    set_policies(model, {"vision": ModulePolicy("last_n", layers=2)})
    model.core.encode_images(pixels()).pooler_output.sum().backward()
    blocks = find_blocks(model.core.vision_tower)[1]
    assert [any(weight.grad is not None for weight in block.parameters()) for block in blocks] == [True, False]


# Checkpoints, and the cache


@pytest.mark.parametrize("full", [False, True])
def test_a_checkpoint_comes_back_with_its_layers(tmp_path, full):
    vision, language = save_vision_tower(tmp_path / "v", "dinov2"), save_language_model(tmp_path / "l")
    chosen = {"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True, "vision_feature_layer": [1, -1]}
    model, processor = compose(vision, language, **chosen, projector_hidden_size=24)
    model.save_pretrained(tmp_path / "saved", full=full)
    processor.save_pretrained(tmp_path / "saved")
    again = CaptionerForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert (again.config.vision_feature_layer, again.config.projector_hidden_size) == ([1, -1], 24)
    inputs = CaptionerProcessor.from_pretrained(tmp_path / "saved")(images=picture(), return_tensors="pt")
    with torch.no_grad():
        assert again(**inputs).logits.equal(model.eval()(**inputs).logits)


def test_a_classifiers_checkpoint_without_a_pooler_serves_with_its_class_token(tmp_path):
    vision = save_vision_tower(tmp_path / "v", "vit_cls")
    weights = tmp_path / "v" / "model.safetensors"
    kept = {name: tensor for name, tensor in load_file(weights).items() if "pooler" not in name}
    save_file(kept, weights, metadata={"format": "pt"})
    model, _ = compose(vision, copy.deepcopy(LANGUAGE["gpt2"]), vision_feature_layer=[1, 2])
    torch.testing.assert_close(model.core.encode_images(pixels()).pooler_output, states(model, 0, 1)[:, :1])


def test_features_are_cached_under_a_key_of_their_layers():
    def key(**settings):
        model = tiny_model("dinov2", image_tokens="patches", **settings)
        return features_key(model, tiny_processor(model.config))

    keys = [key(vision_feature_layer=layer) for layer in (None, 1, 2, [1, 2], [2, 1])]
    assert len(set(keys)) == len(keys)
    assert key() == keys[0]
    assert key(vision_feature_layer=[1]) == keys[1]

"""Vision towers of further families, and what is taken of each; docs/vision_towers.md lists them."""

import copy
from typing import Any

import pytest
import torch
from tiny_models import (
    IMAGE_SIZE,
    LANGUAGE,
    PATCHES,
    PREFIX_TOKENS,
    VISION_WIDTH,
    VIT,
    build,
    pixels,
    tiny_model,
)

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration

# The config; the tokens in front of the patches, or None where `image_tokens: all` has to be told their number; and
# the `pooled_feature`, "cls" where the tower has no pooler.
OTHER_VISION: dict[str, tuple[dict[str, Any], int | None, str]] = {
    "beit": (VIT, 1, "pooler_output"),
    "data2vec-vision": (VIT, 1, "cls"),
    "deit": (VIT, 2, "pooler_output"),
    "dinov3_vit": ({**VIT, "num_register_tokens": 3}, 4, "pooler_output"),
    "ijepa": (VIT, None, "cls"),
}


def of_family(family: str, **settings: Any) -> CaptionerForConditionalGeneration:
    fields, _, pooled_feature = OTHER_VISION[family]
    return of_config({"model_type": family, **fields}, pooled_feature=pooled_feature, **settings)


def of_config(vision_config: dict[str, Any], **settings: Any) -> CaptionerForConditionalGeneration:
    return build(CaptionerConfig(vision_config=vision_config, text_config=copy.deepcopy(LANGUAGE["gpt2"]), **settings))


@pytest.mark.parametrize("family", OTHER_VISION)
def test_a_family_gives_its_pooled_vector(family):
    model = of_family(family)
    outputs = model.core.vision_tower(pixels())
    pooled = outputs.last_hidden_state[:, 0] if OTHER_VISION[family][2] == "cls" else outputs.pooler_output
    torch.testing.assert_close(model.core.encode_images(pixels()).pooler_output[:, 0], pooled)


@pytest.mark.parametrize("family", OTHER_VISION)
def test_a_family_gives_its_patches_without_what_stands_in_front(family):
    model = of_family(family, image_tokens="patches")
    hidden = model.core.vision_tower(pixels()).last_hidden_state
    assert hidden.shape[1] == (OTHER_VISION[family][1] or 0) + PATCHES
    torch.testing.assert_close(model.core.encode_images(pixels()).pooler_output, hidden[:, -PATCHES:])
    assert model.config.image_seq_length == PATCHES
    model.generate(pixel_values=pixels(), max_new_tokens=2)  # as many as their placeholders


@pytest.mark.parametrize("family", [name for name, (_, prefix, _) in OTHER_VISION.items() if prefix is not None])
def test_a_family_says_how_many_tokens_all_are(family):
    model = of_family(family, image_tokens="all")
    assert model.core.encode_images(pixels()).pooler_output.shape[1] == model.config.image_seq_length


def test_a_tower_of_stages_gives_its_pooled_vector():
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    model = of_config({"model_type": "swin", "image_size": IMAGE_SIZE, "patch_size": 4, **sizes})
    assert model.core.encode_images(pixels()).pooler_output.shape == (2, 1, model.config.vision_feature_size)


@pytest.mark.parametrize("family", [name for name, count in PREFIX_TOKENS.items() if count])
def test_cls_is_the_first_of_a_towers_tokens(family):
    model = tiny_model(family, pooled_feature="cls")
    hidden = model.core.vision_tower(pixels()).last_hidden_state
    torch.testing.assert_close(model.core.encode_images(pixels()).pooler_output[:, 0], hidden[:, 0])


def test_a_tower_without_a_pooler_needs_none_for_its_patches():
    fields = OTHER_VISION["ijepa"][0]
    model = of_config({"model_type": "ijepa", **fields}, image_tokens="patches")
    assert model.core.encode_images(pixels()).pooler_output.shape == (2, PATCHES, VISION_WIDTH)
    with pytest.raises(ValueError, match="The ijepa tower gives no pooler_output: choose another pooled_feature"):
        of_config({"model_type": "ijepa", **fields}).core.encode_images(pixels())


def test_patches_of_a_tower_that_merges_them_are_refused():
    sizes = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 2}
    swin = {"model_type": "swin", "image_size": IMAGE_SIZE, "patch_size": 4, **sizes}
    with pytest.raises(ValueError, match=r"The swin tower gives 16 tokens and no token a patch, .* 8 x 8"):
        of_config(swin, image_tokens="patches").core.encode_images(pixels())

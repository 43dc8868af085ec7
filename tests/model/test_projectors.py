"""The projectors: shapes, sizes, how they start, and that each trains, is saved and generates like any other."""

from typing import Any, get_args, get_type_hints

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    PATCHES,
    PREFIX_TOKENS,
    PROJECTOR_FORMS,
    TEXT_WIDTH,
    VISION_WIDTH,
    picture,
    pixels,
    save_language_model,
    save_vision_tower,
    tiny_config,
    tiny_model,
    tiny_processor,
)
from transformers.models.idefics3.modeling_idefics3 import Idefics3Connector

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration, CaptionerProcessor, compose
from vlm_caption.config.sections import ModelSection
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.model import configuration_captioner
from vlm_caption.model.projector_init import describe_projector, fit_scale, input_layer, input_rows
from vlm_caption.model.projectors import PROJECTORS, build_projector
from vlm_caption.towers.configuration import PROJECTOR_SETTINGS

SOFT = {"image_start": "learned", "image_end": "learned", "query_tokens": 3}

every_projector = pytest.mark.parametrize("name", PROJECTOR_FORMS)


def small_config(name: str, **extra: Any) -> CaptionerConfig:
    return tiny_config("dinov2", "llama", projector=name, **PROJECTOR_FORMS[name][0] | extra)


def small_model(name: str, **extra: Any) -> CaptionerForConditionalGeneration:
    return tiny_model("dinov2", "llama", projector=name, **PROJECTOR_FORMS[name][0] | extra)


def count(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


# What there is


def test_every_projector_has_a_class_settings_and_a_small_form():
    names = get_args(configuration_captioner.CaptionerConfig.__annotations__["projector"])
    assert tuple(PROJECTORS) == tuple(PROJECTOR_SETTINGS) == names == tuple(PROJECTOR_FORMS)
    assert get_args(get_type_hints(ModelSection)["projector"]) == names


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"projector": "linear"}, 512 * 768 + 768),
        ({}, 1_968_384),
        # 10 tokens: the papers' 32 M and 43 M, there from 640 features.
        ({"projector": "prefix_mlp"}, 31_468_800),
        ({"projector": "transformer"}, 41_745_408),
        ({"projector": "pixel_shuffle", "image_tokens": "patches"}, 4 * 512 * 768 + 768),
    ],
)
def test_sizes_between_512_features_and_gpt2_are_those_of_the_sources(settings, parameters):
    with torch.device("meta"):
        assert count(build_projector(CaptionerConfig(**settings))) == parameters


@every_projector
def test_an_image_has_as_many_tokens_as_the_config_says(name):
    model, (_, tokens) = small_model(name), PROJECTOR_FORMS[name]
    assert model.config.image_seq_length == tokens
    encoded = model.core.encode_images(pixels(3)).pooler_output
    assert encoded.shape == (3, model.config.vision_seq_length, VISION_WIDTH)
    assert model.core.get_image_features(pixels(3)).pooler_output.shape == (3, tokens, TEXT_WIDTH)


@every_projector
def test_the_summary_names_what_meets_the_features_or_writes_the_tokens(name):
    config = small_config(name)
    assert "Linear(" in describe_projector(build_projector(config), config.projector_hidden_act)


# The arithmetic of each


@settings(max_examples=25, deadline=None)
@given(factor=st.integers(1, 4), cells=st.integers(1, 4), width=st.integers(1, 5), images=st.integers(1, 2))
def test_pixel_shuffle_is_idefics3s(factor, cells, width, images):
    config = tiny_config(projector="pixel_shuffle", image_tokens="patches", projector_shuffle=factor)
    features = torch.randn(images, (factor * cells) ** 2, width)
    expected = Idefics3Connector.pixel_shuffle(None, features, factor)
    assert build_projector(config).arrange(features).equal(expected)


def test_pixel_shuffle_puts_neighbours_together_row_by_row():
    config = tiny_config(projector="pixel_shuffle", image_tokens="patches")
    grid = torch.arange(16.0).reshape(1, 16, 1)  # 4 × 4, numbered in rows
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert build_projector(config).arrange(grid)[0].tolist() == expected


def test_pixel_shuffle_of_what_is_no_divisible_square_is_refused():
    projector = build_projector(tiny_config(projector="pixel_shuffle", image_tokens="patches"))
    for patches in (9, 12):
        with pytest.raises(ValueError, match=f"a square of patches whose side it divides, and an image has {patches}"):
            projector(torch.randn(1, patches, VISION_WIDTH))


def test_pixel_shuffle_has_a_hidden_layer_where_it_is_given_a_width():
    config = small_config("pixel_shuffle", projector_expansion=1)
    projector = build_projector(config)
    assert (
        describe_projector(projector, config.projector_hidden_act)
        == "pixel shuffle by 2 → Linear(64, 64) → GELU → Linear(64, 32)"
    )
    assert projector(torch.randn(2, 16, VISION_WIDTH)).shape == (2, 4, TEXT_WIDTH)


def test_pixel_shuffle_gives_a_pooled_vector_in_front_a_layer_of_its_own():
    config = small_config("pixel_shuffle", pooled_in_front=True)
    assert config.image_seq_length == 5
    projector = build_projector(config)
    assert (
        describe_projector(projector, config.projector_hidden_act)
        == "Linear(16, 32) in front, pixel shuffle by 2 → Linear(64, 32)"
    )
    features = torch.randn(2, 17, VISION_WIDTH)
    tokens = projector(features)
    assert tokens.shape == (2, 5, TEXT_WIDTH)
    assert tokens[:, :1].equal(projector.linear_pooled(features[:, :1]))
    assert tokens[:, 1:].equal(projector.linear_1(projector.arrange(features[:, 1:])))


def test_the_hidden_layer_has_the_width_it_is_given():
    config = CaptionerConfig(
        vision_config={"model_type": "dinov2", "hidden_size": 384, "num_hidden_layers": 12},
        text_config={"model_type": "llama", "hidden_size": 576},
        image_tokens="patches",
        vision_feature_layer=[3, 6, 9, 12],
        projector_hidden_size=768,
    )
    with torch.device("meta"):
        projector = build_projector(config)
    assert describe_projector(projector, "gelu") == "Linear(1536, 768) → GELU → Linear(768, 576)"
    assert count(projector) == 1_623_360
    shuffle = small_config("pixel_shuffle", projector_hidden_size=5)
    assert (shuffle.projector_expansion, shuffle.projector_hidden_act) == (None, "gelu")
    assert build_projector(shuffle).linear_1.out_features == 5


@pytest.mark.parametrize("name", ["transformer", "resampler"])
@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000))
def test_the_attending_ones_take_patches_as_a_set(name, seed):
    torch.manual_seed(seed)
    projector = build_projector(small_config(name, image_tokens="patches"))
    features = torch.randn(2, PATCHES, VISION_WIDTH)
    torch.testing.assert_close(projector(features[:, torch.randperm(PATCHES)]), projector(features))
    moved = projector(features + torch.randn_like(features))
    assert not torch.allclose(moved, projector(features))


def test_the_transformers_layer_is_pytorchs_with_the_norm_first():
    projector = build_projector(small_config("transformer", image_tokens="patches", projector_layers=1)).eval()
    own = projector.layers[0]
    width = TEXT_WIDTH
    reference = torch.nn.TransformerEncoderLayer(width, 8, 2 * width, 0.0, "relu", batch_first=True, norm_first=True)
    reference.load_state_dict(
        {
            "self_attn.in_proj_weight": torch.cat([own.attention.queries.weight, own.attention.keys_values.weight]),
            "self_attn.in_proj_bias": torch.zeros(3 * width),
            "self_attn.out_proj.weight": own.attention.out.weight,
            "self_attn.out_proj.bias": own.attention.out.bias,
            **{
                f"{part}{number}.{kind}": own.get_parameter(f"{part}_{number}.{kind}")
                for part in ("norm", "linear")
                for number in (1, 2)
                for kind in ("weight", "bias")
            },
        }
    )
    tokens = torch.randn(2, 7, width)
    torch.testing.assert_close(own(tokens), reference(tokens))


def test_the_transformers_pooled_vector_becomes_a_prefix_of_as_many_tokens():
    projector = build_projector(small_config("transformer"))
    assert projector.linear.out_features == 3 * TEXT_WIDTH
    assert projector.learned_tokens.shape == (3, TEXT_WIDTH)


@pytest.mark.parametrize(("name", "width"), [("transformer", TEXT_WIDTH), ("resampler", VISION_WIDTH)])
def test_heads_that_do_not_divide_the_width_are_refused(name, width):
    with pytest.raises(ValueError, match=f"projector_heads=5 does not divide the width .* which is {width}"):
        build_projector(small_config(name, projector_heads=5))


# How they start


@every_projector
def test_fit_scale_standardises_what_goes_in_and_gives_what_comes_out_the_wanted_spread(name):
    projector = small_model(name, projector_dropout=0.5).core.multi_modal_projector.train()
    per_image = small_config(name).vision_seq_length
    features = 30 * torch.randn(64, per_image, VISION_WIDTH) + 7
    features[..., 0] = 5  # a constant feature must not blow up
    before = count(projector)
    fit_scale(projector, features, output_std=0.13)
    assert projector.training
    projector.eval()
    assert projector(features).std().item() == pytest.approx(0.13, rel=0.01)
    first = input_layer(projector)(input_rows(projector, features))
    assert first.flatten(0, -2).mean(0).abs().max() < 1
    assert first.std() < 1.5
    assert count(projector) == before
    assert (projector(features[:1]) - projector(features[1:2])).abs().max() > 1e-4  # the image is in the tokens


def test_fit_scale_gives_the_pooled_vector_in_front_the_same_spread_as_the_patches():
    projector = build_projector(small_config("pixel_shuffle", pooled_in_front=True, projector_expansion=1))
    features = torch.cat([5 * torch.randn(64, 1, VISION_WIDTH) - 3, torch.randn(64, 16, VISION_WIDTH) + 7], dim=1)
    fit_scale(projector, features, output_std=0.13)
    tokens = projector(features)
    assert tokens[:, 0].std().item() == pytest.approx(0.13, rel=0.01)
    assert tokens[:, 1:].std().item() == pytest.approx(0.13, rel=0.01)


@every_projector
def test_fit_scale_of_a_single_image_stays_finite(name):
    projector = small_model(name).core.multi_modal_projector
    features = torch.randn(1, small_config(name).vision_seq_length, VISION_WIDTH)
    fit_scale(projector, features, output_std=0.3)
    assert torch.isfinite(projector(10 * torch.randn_like(features))).all()


@every_projector
def test_linear_layers_start_at_pytorchs_scale_whatever_the_towers_start_at(name):
    for module in small_model(name).core.multi_modal_projector.modules():
        if isinstance(module, torch.nn.Linear):
            assert 0 < module.weight.abs().max() <= module.in_features**-0.5
        elif isinstance(module, torch.nn.LayerNorm):
            assert module.weight.eq(1).all()
            assert module.bias.eq(0).all()


@pytest.mark.parametrize("family", ["llama", "gemma3"])  # which scales its table
def test_soft_tokens_start_where_embeddings_are(family):
    model = tiny_model("dinov2", family, query_tokens=64, image_end="learned")
    embeddings = model.core.vocabulary()
    assert embeddings.equal(model.get_input_embeddings()(torch.arange(model.config.text_config.vocab_size)))
    query = model.core.query_tokens
    assert query.std().item() == pytest.approx(embeddings.std().item(), rel=0.1)
    assert (query.mean(0) - embeddings.mean(0)).abs().max() < embeddings.std()


# Dropout


@every_projector
def test_dropout_is_of_training_alone(name):
    model = small_model(name, projector_dropout=0.5)
    features = torch.randn(2, model.config.vision_seq_length, VISION_WIDTH)
    project = model.core.multi_modal_projector
    assert project(features).equal(project(features))
    model.train()
    assert not project(features).equal(project(features))


# Each in the model


@every_projector
def test_gradients_reach_every_parameter(name):
    model = small_model(name, **SOFT).train()
    ids = torch.cat([model.core.image_prompt(2), torch.tensor([[40, EOS], [50, EOS]])], dim=1)
    model(input_ids=ids, labels=ids, pixel_values=pixels(2)).loss.backward()
    trained = {key: parameter for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert {"core.image_start", "core.image_end", "core.query_tokens"} < set(trained)
    for key, parameter in trained.items():
        assert parameter.grad is not None, key
        assert parameter.grad.abs().max() > 0, key


@every_projector
def test_greedy_captions_are_the_argmax_of_one_full_forward(name):
    model = small_model(name, **SOFT)
    captions = model.generate(pixel_values=pixels(2), max_new_tokens=6, min_new_tokens=6, do_sample=False)
    length = model.core.image_prompt(1).shape[1]
    logits = model(input_ids=captions, pixel_values=pixels(2)).logits[:, length - 1 : -1]
    logits[..., EOS] = -torch.inf  # for min_new_tokens
    assert logits.argmax(-1).equal(captions[:, length:])


@every_projector
def test_packed_captions_have_the_loss_of_captions_in_rows_of_their_own(name):
    model = small_model(name, **SOFT)
    collator = CaptionCollator(tiny_processor(model.config), lambda rows: {"pixel_values": pixels(len(rows))})
    captions = ["a dog", "two cats here"]
    packed = collator([{"captions": captions}])
    alone = [collator([{"captions": [caption]}]) for caption in captions]
    total = sum(model(**batch, num_items_in_batch=1).loss for batch in alone)
    torch.testing.assert_close(model(**packed, num_items_in_batch=1).loss, total, rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def towers(tmp_path_factory) -> tuple[str, str]:
    folder = tmp_path_factory.mktemp("towers")
    return save_vision_tower(folder / "v", "dinov2"), save_language_model(folder / "l", "llama")


@every_projector
def test_a_bridge_holds_the_projector_and_the_soft_tokens_and_loads_them(tmp_path, towers, name):
    model, processor = compose(*towers, projector=name, **PROJECTOR_FORMS[name][0], **SOFT)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    saved = set(load_file(tmp_path / "model.safetensors"))
    assert saved == {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert type(loaded.core.multi_modal_projector) is PROJECTORS[name]
    inputs = CaptionerProcessor.from_pretrained(tmp_path)(images=picture(), return_tensors="pt")
    assert inputs["input_ids"].shape[1] == PROJECTOR_FORMS[name][1] + 5
    assert loaded(**inputs).logits.equal(model.eval()(**inputs).logits)


@every_projector
def test_the_projector_is_trained_in_float32_beside_towers_in_bfloat16(name):
    model = small_model(name, **SOFT)
    model.core.vision_tower.to(torch.bfloat16)
    model.core.language_model.to(torch.bfloat16)
    assert model.dtype == torch.float32
    ids = model.core.image_prompt(1)
    outputs = model(input_ids=ids, pixel_values=pixels(1))
    assert outputs.image_hidden_states.dtype == torch.float32
    assert outputs.logits.dtype == torch.bfloat16


# All tokens of a tower


@pytest.mark.parametrize("vision", [name for name in PREFIX_TOKENS if not name.startswith("timm")])
def test_all_tokens_are_the_towers_as_they_are(vision):
    model = tiny_model(vision, "llama", image_tokens="all")
    assert model.config.image_seq_length == PATCHES + PREFIX_TOKENS[vision]
    encoded = model.core.encode_images(pixels(2))
    assert encoded.pooler_output.equal(encoded.last_hidden_state)
    model.generate(pixel_values=pixels(1), max_new_tokens=2)  # as many as their placeholders


def test_all_tokens_are_behind_the_towers_last_norm():
    """A ViT's last hidden state is not the last of its `hidden_states`, which is before the norm."""
    model = tiny_model("vit_cls", "llama", image_tokens="all").core
    outputs = model.vision_tower(pixels(2), output_hidden_states=True)
    tokens = model.encode_images(pixels(2)).pooler_output
    assert tokens.equal(model.vision_tower.layernorm(outputs.hidden_states[-1]))
    assert not torch.allclose(tokens, outputs.hidden_states[-1], atol=0.1)


def test_all_tokens_of_vit_base_are_197():
    config = CaptionerConfig(
        vision_config={"model_type": "vit"}, text_config={"model_type": "phi3"}, image_tokens="all"
    )
    assert config.image_seq_length == 197


def test_all_tokens_of_a_tower_that_does_not_say_how_many_are_asked_for():
    sizes = {"patch_size": IMAGE_SIZE // 4}
    config = tiny_config("timm_registers", image_tokens="all", vision_config=sizes)
    with pytest.raises(ValueError, match=r"timm_wrapper vision config does not say .* set num_prefix_tokens in"):
        _ = config.image_seq_length
    sizes["num_prefix_tokens"] = 4
    model = tiny_model("timm_registers", "llama", image_tokens="all", vision_config=sizes)
    assert model.core.encode_images(pixels(1)).pooler_output.shape[1] == model.config.image_seq_length == PATCHES + 4


# Soft tokens


def test_start_image_end_and_query_stand_in_this_order():
    model = tiny_model("dinov2", "llama", image_tokens="patches", image_grid=2, **SOFT)
    core = model.core
    tokens = core.get_image_features(pixels(2)).pooler_output
    plain = core.multi_modal_projector(core.encode_images(pixels(2)).pooler_output)
    assert tokens.shape[1] == model.config.image_seq_length == 9
    for row, image in zip(tokens, plain, strict=True):
        assert row.equal(torch.cat([core.image_start[None], image, core.image_end[None], core.query_tokens]))


def test_the_processor_writes_a_placeholder_for_each_of_them():
    processor = tiny_processor(tiny_config(image_end="learned", query_tokens=2))
    assert processor(images=picture())["input_ids"] == [[BOS, *[IMAGE] * 4]]


def test_soft_tokens_change_in_training():
    """They were drawn once and never trained in a system that this one stands for."""
    model = tiny_model("dinov2", "llama", **SOFT).train()
    before = {name: vector.detach().clone() for name, vector in model.core.soft_tokens().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    ids = torch.cat([model.core.image_prompt(1), torch.tensor([[40, EOS]])], dim=1)
    model(input_ids=ids, labels=ids, pixel_values=pixels(1)).loss.backward()
    optimizer.step()
    assert list(before) == ["image_start", "image_end", "query_tokens"]
    for name, vector in model.core.soft_tokens().items():
        assert (vector != before[name]).all(), name


def test_query_vectors_may_start_from_a_text(towers):
    text = "This image contains: "
    model, processor = compose(*towers, query_text=text)
    ids = processor.tokenizer(text, add_special_tokens=False).input_ids
    assert model.config.query_tokens == len(ids)
    assert model.core.query_tokens.equal(model.get_input_embeddings().weight[ids])
    assert model.core.query_tokens.requires_grad


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"query_text": "abc", "query_tokens": 2}, "query_text 'abc' has 3 tokens, and query_tokens is 2: leave out"),
        ({"query_text": ""}, "query_text is empty"),
    ],
)
def test_a_query_text_that_makes_no_sense_is_refused(towers, settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        compose(*towers, **settings)


# Settings


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (
            {"projector": "linear", "projector_expansion": 3},
            "does not belong to projector='linear'",
        ),
        (
            {"projector_tokens": 4},
            "leave it out, or choose the projector prefix_mlp or transformer or resampler",
        ),
        ({"projector": "transformer", "projector_shuffle": 2}, "choose the projector pixel_shuffle"),
        ({"projector": "transformer", "projector_layers": 0}, "projector_layers must be at least 1, got 0"),
        ({"projector_dropout": 1.0}, "projector_dropout must be at least 0 and below 1, got 1.0"),
        ({"query_tokens": -1}, "query_tokens must be at least 0, got -1"),
        ({"projector": "prefix_mlp", "image_tokens": "patches"}, "of one pooled vector: set image_tokens='pooled'"),
        ({"projector": "resampler"}, "set image_tokens to 'patches' or 'all'"),
        ({"projector": "pixel_shuffle"}, "puts neighbouring patches together: set image_tokens='patches'"),
        ({"projector_hidden_size": 4, "projector_expansion": 2}, "both give the width of the hidden layer: leave out"),
        ({"projector_hidden_size": 0}, "projector_hidden_size must be at least 1, got 0"),
        (
            {"projector": "prefix_mlp", "projector_hidden_size": 4},
            "leave it out, or choose the projector mlp or pixel_shuffle",
        ),
        (
            {"projector": "pixel_shuffle", "image_tokens": "patches", "projector_hidden_act": "gelu"},
            "has one only where projector_expansion or projector_hidden_size is set",
        ),
        ({"image_tokens": "all", "image_grid": 2}, "image_grid and pooled_in_front belong to image_tokens='patches'"),
        ({"image_tokens": "all", "pooled_feature": "image_embeds"}, "it belongs to image_tokens='pooled'"),
    ],
)
def test_settings_of_another_projector_are_refused(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        tiny_config(**settings)


def test_a_shuffle_that_does_not_divide_the_grid_is_refused():
    config = tiny_config(projector="pixel_shuffle", image_tokens="patches", projector_shuffle=3)
    with pytest.raises(ValueError, match="projector_shuffle=3 does not divide the 4 by 4 patches"):
        _ = config.image_seq_length


@every_projector
def test_a_config_comes_back_from_json_as_it_was(tmp_path, name):
    config = small_config(name, **SOFT, projector_dropout=0.1)
    config.save_pretrained(tmp_path)
    loaded = CaptionerConfig.from_pretrained(tmp_path)
    assert loaded.to_dict() == config.to_dict()
    assert loaded.image_seq_length == config.image_seq_length

"""The layer prefix: keys and values of the image in front of each layer of the language model."""

import pytest
import torch
from tiny_models import LANGUAGE, OTHER_LANGUAGE, REFUSED_LANGUAGE, picture, pixels, tiny_model, tiny_processor
from torch import nn

from vlm_caption import Captioner, CaptionerForConditionalGeneration
from vlm_caption.captioning.generation import GenerationSettings, generate, token_log_probs
from vlm_caption.model.modeling_captioner import CACHE
from vlm_caption.towers.composition import compose

WITHOUT = {"falcon", "gpt_neox", "gemma2", "gemma3", "gpt_oss"}  # no full attention, or keys of another shape
FAMILIES = sorted((LANGUAGE | OTHER_LANGUAGE).keys() - WITHOUT)
PATCHES = {"image_tokens": "patches", "image_grid": 2}


def build(language="llama", **settings):
    return tiny_model("dinov2", language, layer_prefix_rank=3, **(PATCHES | settings))


@pytest.mark.parametrize("language", FAMILIES)
@pytest.mark.parametrize("settings", [{"num_beams": 1}, {"num_beams": 3, "num_return_sequences": 2}], ids=str)
@torch.no_grad()
def test_captions_are_those_of_generate_and_of_a_pass_over_the_whole(language, settings):
    model = build(language)
    features = model.core.encode_images(pixels(2)).pooler_output
    prompt = model.core.image_prompt(1)[0].tolist()
    options = GenerationSettings({"max_new_tokens": 6, "do_sample": False} | settings)
    images = {"image_features": features}
    found = generate(model, tiny_processor(model.config), [prompt, [*prompt, 70, 71]], images, options)
    count = settings.get("num_return_sequences", 1)
    whole = token_log_probs(model, found, features.repeat_interleave(count, dim=0))
    torch.testing.assert_close(found.log_probs, whole, rtol=0, atol=1e-4)
    alone = model.generate(
        torch.tensor([prompt]), image_features=features[:1], max_new_tokens=6, do_sample=False, **settings
    )
    for own, theirs, is_caption in zip(found.new_ids, alone[:, len(prompt) :], found.is_caption, strict=False):
        length = 1 + int(is_caption.nonzero().max())
        assert own[:length].tolist() == theirs[:length].tolist()


@pytest.mark.parametrize("rank", [None, 3])
def test_lengths_of_whole_sequences_do_not_count_the_prefix(rank):
    model = tiny_model("dinov2", "llama", layer_prefix_rank=rank, **PATCHES)
    model.generation_config.update(max_new_tokens=None, do_sample=False, eos_token_id=None)
    prompt = model.core.image_prompt(1)
    length = prompt.shape[1]
    for settings, new in (
        ({"max_length": length + 3}, 3),
        ({"max_length": length + 3, "min_length": length + 2}, 3),
        ({}, 20),
    ):
        assert model.generate(pixel_values=pixels(1), **settings).shape[1] == length + new
    with pytest.raises(ValueError, match=f"The prompt has {length} tokens .* and max_length is {length}"):
        model.generate(pixel_values=pixels(1), max_length=length)
    ends = model.generate(pixel_values=pixels(1), max_new_tokens=1)[0, -1].item()  # the likeliest first token
    early = model.generate(pixel_values=pixels(1), max_length=length + 6, eos_token_id=ends)
    late = model.generate(pixel_values=pixels(1), max_length=length + 6, min_length=length + 4, eos_token_id=ends)
    assert early.shape[1] == length + 1
    assert late.shape[1] >= length + 4


def test_a_cache_of_another_kind_is_refused():
    with pytest.raises(ValueError, match="leave out cache_implementation"):
        build().generate(pixel_values=pixels(1), cache_implementation="static", max_new_tokens=2)


@torch.no_grad()
def test_a_prefix_is_what_a_model_without_one_reads_from_a_cache():
    model = build()
    ids, images = model.core.image_prompt(2), pixels(2)
    core = model.core
    embeds = core.get_image_features(images).pooler_output
    cache = core.layer_prefix.fill_cache(None, embeds, 2, torch.float32)
    length = cache.get_seq_length()
    assert length == embeds.shape[1]
    expected = core.language_model(
        inputs_embeds=core.embed_inputs(ids, embeds),
        attention_mask=torch.ones(2, length + ids.shape[1]),
        position_ids=torch.arange(length, length + ids.shape[1])[None],
        **{CACHE: cache},
    ).logits
    torch.testing.assert_close(model(ids, pixel_values=images).logits, expected)


@torch.no_grad()
def test_a_new_prefix_looks_at_no_image_and_an_image_is_seen_by_each_layer():
    model = build()
    prefix = model.core.layer_prefix
    values = prefix(torch.randn(2, 4, model.config.text_embedding_size))  # [L, 2, I, H, N, E]
    assert values.shape == (2, 2, 2, 1, 4, 16)
    assert (values[:, :, 0] != values[:, :, 1]).flatten(2).any(dim=2).all()
    fresh, _ = compose(model.config.vision_config.to_dict(), model.config.text_config.to_dict(), layer_prefix_rank=3)
    assert not fresh.core.layer_prefix(torch.randn(1, 1, 32)).any()
    assert fresh.core.layer_prefix.down.weight.abs().max() > 0


def test_the_prefix_is_trained_with_the_projector_and_frozen_with_it():
    model = build()
    names = {f"core.layer_prefix.{name}" for name in ("up", "bias", "down.weight", "down.bias")}
    assert names < {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    logits = model(model.core.image_prompt(2), pixel_values=pixels(2)).logits
    logits.logsumexp(-1).sum().backward()
    assert all(model.get_parameter(name).grad.abs().max() > 0 for name in names)
    model.config.freeze_projector = True
    model.freeze_towers()
    assert not any(model.get_parameter(name).requires_grad for name in names)


@torch.no_grad()
def test_several_images_of_a_row_are_all_in_front():
    model = build("gpt2", text_config={"n_positions": 64}).double()  # rows and batches are summed in another order
    prompt = model.core.image_prompt(1)[0, 1:]
    row = torch.cat([torch.tensor([1]), prompt, torch.tensor([70]), prompt])[None]
    logits = model(row, pixel_values=pixels(2)).logits
    assert (logits - model(row, pixel_values=pixels(2).flip(0)).logits).abs().max() > 1e-3
    batch = model(row.repeat(2, 1), pixel_values=torch.cat([pixels(2).flip(0), pixels(2)])).logits
    torch.testing.assert_close(batch[1:], logits)
    with pytest.raises(ValueError, match="exceed the 60 positions"):
        model.check_length(60, 1, images=1)
    model.check_length(50, 6, images=2)
    with pytest.raises(ValueError, match="exceed the 56 positions"):
        model.check_length(50, 7, images=2)


def test_rows_with_different_numbers_of_images_are_refused():
    model = build()
    image = model.core.image_prompt(1)[0]
    rows = torch.stack([torch.cat([image, image[1:]]), nn.functional.pad(image, (4, 0), value=70)])
    with pytest.raises(ValueError, match="the same number of images"):
        model(rows, pixel_values=pixels(3))


def test_embeddings_in_place_of_tokens_are_refused():
    model = build()
    with pytest.raises(ValueError, match="pass input_ids instead"):
        model.generate(inputs_embeds=torch.zeros(1, 3, 32))


@pytest.mark.parametrize("language", ["gemma3", "mamba", "rwkv"])
def test_language_models_whose_layers_do_not_see_all_tokens_are_refused(language):
    assert language in LANGUAGE | OTHER_LANGUAGE | REFUSED_LANGUAGE
    with pytest.raises(ValueError, match="layer_prefix_rank needs layers whose attention reaches all tokens"):
        build(language)


def test_a_language_model_with_keys_of_another_shape_is_refused():
    language = {"model_type": "falcon", "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {"model_type": "vit", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    with pytest.raises(ValueError, match="keys and values of another shape"):
        compose(vision, language, layer_prefix_rank=2)
    with pytest.raises(ValueError, match="layer_prefix_rank must be at least 1, got 0"):
        compose(vision, language, layer_prefix_rank=0)


def test_activation_checkpointing_is_refused():
    model = build()
    model.core.language_model.gradient_checkpointing_enable()
    with pytest.raises(ValueError, match="disable one of them"):
        model(model.core.image_prompt(1), pixel_values=pixels(1), labels=model.core.image_prompt(1))


def test_a_checkpoint_keeps_the_prefix(tmp_path):
    model = build()
    model.generation_config.update(max_new_tokens=6)
    model.save_pretrained(tmp_path)
    tiny_processor(model.config).save_pretrained(tmp_path)
    [own] = Captioner(model, tiny_processor(model.config)).caption(picture())
    half = CaptionerForConditionalGeneration.from_pretrained(tmp_path, dtype=torch.float16)
    assert half.core.layer_prefix.up.dtype == torch.float32
    assert half.core.language_model.dtype == torch.float16
    [loaded] = Captioner.from_pretrained(tmp_path).caption(picture())
    assert (loaded.text, loaded.score) == (own.text, pytest.approx(own.score, abs=1e-5))

"""generate(): from images alone or behind prompts, with and without a cache, in beams and in batches."""

import pytest
import torch
from tiny_models import (
    BOS,
    EOS,
    IMAGE,
    LANGUAGE,
    PAD,
    POSITIONS,
    TEXT_WIDTH,
    VISION_WIDTH,
    picture,
    pixels,
    tiny_model,
    tiny_processor,
)

from vlm_caption import CaptionerForConditionalGeneration

GREEDY = {"do_sample": False, "max_new_tokens": 6, "min_new_tokens": 6}


@pytest.fixture
def model() -> CaptionerForConditionalGeneration:
    """Random, with image tokens of both kinds; says different things about different images."""
    return tiny_model("vit_cls", "llama", image_tokens="patches", image_grid=2, pooled_in_front=True)


def left_padded(*rows: list[int]) -> dict[str, torch.Tensor]:
    width = max(map(len, rows))
    return {
        "input_ids": torch.tensor([[PAD] * (width - len(row)) + row for row in rows]),
        "attention_mask": torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows]),
    }


@pytest.mark.parametrize("language", LANGUAGE)
def test_greedy_takes_the_likeliest_token_of_the_forward_pass(language):
    model = tiny_model("vit_cls", language, image_tokens="patches", image_grid=2)
    ids = model.core.image_prompt(2)
    expected = ids
    for _ in range(GREEDY["max_new_tokens"]):
        logits = model(input_ids=expected, pixel_values=pixels()).logits[:, -1]
        logits[:, EOS] = -torch.inf  # min_new_tokens
        expected = torch.cat([expected, logits.argmax(-1, keepdim=True)], dim=1)
    assert model.generate(pixel_values=pixels(), **GREEDY).tolist() == expected.tolist()


@pytest.mark.parametrize("language", LANGUAGE)
@pytest.mark.parametrize("how", [{"use_cache": False}, {"cache_implementation": "static"}], ids=["no cache", "static"])
def test_a_cache_changes_nothing(language, how):
    model = tiny_model("vit_cls", language, image_tokens="patches", image_grid=2)
    expected = model.generate(pixel_values=pixels(), **GREEDY)
    assert model.generate(pixel_values=pixels(), **GREEDY, **how).tolist() == expected.tolist()


def test_beams_are_the_same_without_a_cache(model):
    beams = {"num_beams": 3, "num_return_sequences": 2}
    expected = model.generate(pixel_values=pixels(), **GREEDY, **beams)
    assert expected.shape[0] == 4
    assert model.generate(pixel_values=pixels(), **GREEDY, **beams, use_cache=False).tolist() == expected.tolist()


def test_beams_of_a_batch_are_the_beams_of_each_image(model):
    batch = model.generate(pixel_values=pixels(), **GREEDY, num_beams=3)
    each = [model.generate(pixel_values=pixels()[i : i + 1], **GREEDY, num_beams=3)[0] for i in range(2)]
    assert batch.tolist() == torch.stack(each).tolist()


def test_the_image_is_used(model):
    first, second = model.generate(pixel_values=pixels(), **GREEDY)
    assert first.tolist() != second.tolist()
    swapped = model.generate(pixel_values=pixels().flip(0), **GREEDY)
    assert swapped.tolist() == [second.tolist(), first.tolist()]


def test_an_image_alone_is_the_processors_empty_prompt(model):
    inputs = tiny_processor(model.config)(images=[picture(0), picture(1)], return_tensors="pt")
    expected = model.generate(**inputs, **GREEDY)
    assert expected[:, :6].tolist() == [[BOS] + [IMAGE] * 5] * 2
    assert model.generate(pixel_values=inputs["pixel_values"], **GREEDY).tolist() == expected.tolist()
    assert model.generate(inputs["input_ids"], pixel_values=inputs["pixel_values"], **GREEDY).equal(expected)


@pytest.mark.parametrize("how", [{}, {"num_beams": 3}, {"use_cache": False}], ids=["greedy", "beams", "no cache"])
def test_image_features_and_encoded_images_serve_as_pixels(model, how):
    expected = model.generate(pixel_values=pixels(), **GREEDY, **how)
    features = model.core.encode_images(pixels()).pooler_output
    assert features.shape == (2, 5, VISION_WIDTH)
    assert model.generate(image_features=features, **GREEDY, **how).tolist() == expected.tolist()
    encoded = {"image": model.get_image_features(pixels())}
    prompt = model.core.image_prompt(2)
    assert model.generate(prompt, mm_encoder_outputs=encoded, **GREEDY, **how).tolist() == expected.tolist()


@pytest.mark.parametrize("image_start", ["learned", "none"])
def test_generation_needs_no_bos(image_start):
    model = tiny_model("vit_cls", "qwen2", image_start=image_start, text_config={"bos_token_id": None})
    generated = model.generate(pixel_values=pixels(), bos_token_id=None, **GREEDY)
    start = model.config.image_seq_length
    assert generated[:, :start].tolist() == [[IMAGE] * start] * 2
    assert generated.shape == (2, start + 6)


def test_a_start_token_that_is_also_the_padding_is_not_masked(model):
    expected = model.generate(pixel_values=pixels(), **GREEDY)
    assert model.generate(pixel_values=pixels(), **GREEDY, pad_token_id=BOS).tolist() == expected.tolist()


@pytest.mark.parametrize("language", LANGUAGE)
def test_left_padded_prompts_are_continued_as_each_alone(language):
    model = tiny_model("vit_cls", language, image_tokens="patches", image_grid=2)
    prompts = [[BOS, *[IMAGE] * 4, *text] for text in ([50], [50, 60, 70, 80], [90, 60])]
    alone = [
        model.generate(torch.tensor([prompt]), pixel_values=pixels(3)[i : i + 1], **GREEDY)[0, -6:].tolist()
        for i, prompt in enumerate(prompts)
    ]
    batch = model.generate(**left_padded(*prompts), pixel_values=pixels(3), **GREEDY)
    assert batch[:, -6:].tolist() == alone


def test_a_penalty_of_repetition_does_not_depend_on_the_padding(model):
    rows = [[BOS, *[IMAGE] * 5], [BOS, *[IMAGE] * 5, *range(20, 32)]]
    settings = {
        "do_sample": False,
        "num_beams": 3,
        "max_new_tokens": 12,
        "min_new_tokens": 12,
        "repetition_penalty": 5.0,
    }
    together = model.generate(**left_padded(*rows), pixel_values=pixels(), **settings)[:, -12:]
    for row, image, new in zip(rows, pixels(), together, strict=True):
        alone = model.generate(**left_padded(row), pixel_values=image[None], **settings)[0, -12:]
        assert new.tolist() == alone.tolist()
        assert len(set(new.tolist())) > len(new) // 2


def test_several_images_in_one_prompt_and_beams(model):
    prompts = [BOS, *[IMAGE] * 5, 50, *[IMAGE] * 5, 60], [BOS, *[IMAGE] * 5, 70]
    images = pixels(3)
    beams = GREEDY | {"num_beams": 2}
    alone = [
        model.generate(torch.tensor([prompt]), pixel_values=images[part], **beams)[0, -6:].tolist()
        for prompt, part in zip(prompts, (slice(0, 2), slice(2, 3)), strict=True)
    ]
    assert model.generate(**left_padded(*prompts), pixel_values=images, **beams)[:, -6:].tolist() == alone


def test_sampling_gives_several_captions_of_each_image(model):
    torch.manual_seed(0)
    sampled = model.generate(
        pixel_values=pixels(), do_sample=True, top_k=0, num_return_sequences=4, max_new_tokens=5, min_new_tokens=5
    )
    assert sampled.shape == (8, 11)
    assert len({tuple(row) for row in sampled[:4].tolist()}) > 1


def test_generation_stops_at_the_end_token(model):
    first = model.generate(pixel_values=pixels(1), **GREEDY)[0, -6:].tolist()
    generated = model.generate(pixel_values=pixels(1), do_sample=False, max_new_tokens=6, eos_token_id=first[1])
    assert generated[0, 6:].tolist() == first[: first.index(first[1]) + 1]


def test_the_vision_tower_sees_each_image_once(model):
    seen = []
    model.core.vision_tower.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(len(args[0] if args else kwargs["pixel_values"])), with_kwargs=True
    )
    model.generate(pixel_values=pixels(), **GREEDY, num_beams=3)
    assert seen == [2]
    model.generate(**left_padded(*model.core.image_prompt(2).tolist()), pixel_values=pixels(), **GREEDY)
    assert seen == [2, 2]


@pytest.mark.parametrize("how", [{}, {"num_beams": 2}, {"do_sample": True, "num_return_sequences": 2}])
@pytest.mark.parametrize(("placeholders", "images"), [(5, 2), (10, 1), (4, 1), (0, 1), (5, 0)])
def test_placeholders_and_images_that_do_not_match_are_refused(model, placeholders, images, how):
    inputs = {"input_ids": torch.tensor([[BOS, *[IMAGE] * placeholders, 50]])}
    if images:
        inputs["pixel_values"] = pixels(images)
    with pytest.raises(ValueError, match=f"image placeholders .* for {5 * images} image tokens"):
        model.generate(**inputs, max_new_tokens=3, **how)


def test_an_image_given_twice_is_refused(model):
    features = model.core.encode_images(pixels(1)).pooler_output
    with pytest.raises(ValueError, match="either pixel_values or image_features"):
        model.generate(pixel_values=pixels(1), image_features=features)
    with pytest.raises(ValueError, match="Pass the image once"):
        model.generate(pixel_values=pixels(1), mm_encoder_outputs={"image": model.get_image_features(pixels(1))})
    with pytest.raises(ValueError, match="inputs_embeds hold their image tokens already"):
        model.generate(inputs_embeds=torch.zeros(1, 6, TEXT_WIDTH), pixel_values=pixels(1), max_new_tokens=3)


def test_embeddings_are_continued_as_their_tokens_are(model):
    prompt = model.core.image_prompt(2)
    embeds = model.core.prepare_language_inputs(prompt, model.core.take_images(pixels()))["inputs_embeds"]
    expected = model.generate(pixel_values=pixels(), **GREEDY)
    assert model.generate(inputs_embeds=embeds, **GREEDY).tolist() == expected[:, prompt.shape[1] :].tolist()


def test_text_without_an_image_is_continued(model):
    generated = model.generate(torch.tensor([[BOS, 50, 60]]), **GREEDY)
    expected = model.core.language_model.generate(torch.tensor([[BOS, 50, 60]]), **GREEDY)
    assert generated.tolist() == expected.tolist()


def test_more_tokens_than_positions_are_refused_before_the_first():
    model = tiny_model("vit_cls", "gpt2")
    with pytest.raises(
        ValueError, match=f"2 prompt tokens .* up to {POSITIONS - 1} new ones exceed the {POSITIONS} positions of the"
    ):
        model.generate(pixel_values=pixels(1), max_new_tokens=POSITIONS - 1)
    fits = model.generate(pixel_values=pixels(1), max_new_tokens=POSITIONS - 2, min_new_tokens=POSITIONS - 2)
    assert fits.shape == (1, POSITIONS)


def test_rotary_positions_have_no_end():
    longer = tiny_model("vit_cls", "llama").generate(
        pixel_values=pixels(1), max_new_tokens=POSITIONS, min_new_tokens=POSITIONS
    )
    assert longer.shape == (1, POSITIONS + 2)


@pytest.mark.filterwarnings("ignore:Using the model-agnostic default")
def test_the_default_length_leaves_room_behind_many_image_tokens():
    model = tiny_model("vit_cls", image_tokens="patches")
    assert model.generate(pixel_values=pixels(1), min_new_tokens=5).shape[1] > model.config.image_seq_length + 5


def test_generation_leaves_the_mode_and_the_gradients_alone(model):
    model.train()
    assert not model.generate(pixel_values=pixels(1), **GREEDY).requires_grad
    assert model.training
    assert all(p.grad is None for p in model.parameters())

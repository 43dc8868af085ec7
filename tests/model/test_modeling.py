"""The composed model's forward pass: image tokens, position 0, loss, packed rows, and what is and is not trained."""

import pytest
import torch
from tiny_models import (
    BOS,
    EOS,
    IMAGE,
    IMAGE_SIZE,
    LANGUAGE,
    PAD,
    PATCH_SIZE,
    PATCHES,
    POSITIONS,
    PREFIX_TOKENS,
    TEXT_WIDTH,
    VISION,
    VISION_WIDTH,
    VOCAB_SIZE,
    build,
    pixels,
    tiny_config,
    tiny_model,
    tiny_processor,
)
from torch.nn import functional

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.model.projector_init import fit_scale
from vlm_caption.model.projectors import MultiModalProjector


def rows_of(model: CaptionerForConditionalGeneration, *captions: list[int], pad: int = PAD) -> dict[str, torch.Tensor]:
    """One right-padded row for each caption, behind its image: input_ids, attention_mask, labels."""
    prefix = model.core.image_prompt(1)[0].tolist()
    width = max(map(len, captions))
    filled = [prefix + ids + [pad] * (width - len(ids)) for ids in captions]
    labels = [[-100] * len(prefix) + ids + [-100] * (width - len(ids)) for ids in captions]
    mask = [[1] * (len(prefix) + len(ids)) + [0] * (width - len(ids)) for ids in captions]
    return {
        "input_ids": torch.tensor(filled),
        "attention_mask": torch.tensor(mask),
        "labels": torch.tensor(labels),
    }


def projector_gradients(model: CaptionerForConditionalGeneration) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.core.multi_modal_projector.named_parameters()}


# Every family


@pytest.mark.parametrize(
    ("vision", "language"),
    [(name, "gpt2") for name in VISION] + [("clip", name) for name in LANGUAGE if name != "gpt2"],
)
def test_every_family_trains_the_projector_alone_and_generates(vision, language):
    model = tiny_model(vision, language)
    output = model(**rows_of(model, [5, 6, 7, EOS], [8, EOS]), pixel_values=pixels())
    assert torch.isfinite(output.loss)
    assert output.logits.shape == (2, 6, VOCAB_SIZE)
    output.loss.backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().sum() > 0}
    assert reached == {
        f"core.multi_modal_projector.{layer}.{kind}"
        for layer in ("linear_1", "linear_2")
        for kind in ("weight", "bias")
    }
    generated = model.generate(pixel_values=pixels(), max_new_tokens=3, min_new_tokens=3, do_sample=False)
    assert generated.shape == (2, 5)
    assert generated[:, :2].tolist() == [[BOS, IMAGE]] * 2


@pytest.mark.parametrize("language", LANGUAGE)
def test_the_first_caption_token_is_predicted_from_the_image(language):
    model = tiny_model("clip", language)
    batch = rows_of(model, [5, EOS], [5, EOS])
    first = batch["input_ids"].shape[1] - 3  # the position before the caption
    logits = model(**batch, pixel_values=pixels()).logits
    assert (logits[0, first] - logits[1, first]).abs().max() > 1e-3
    same = model(**batch, pixel_values=pixels(1).repeat(2, 1, 1, 1)).logits
    torch.testing.assert_close(same[0, first], same[1, first])


# Image tokens


@pytest.mark.parametrize(
    ("vision", "settings", "count"),
    [(vision, {}, 1) for vision in VISION]
    + [
        (vision, {"image_tokens": "patches", **settings}, count)
        for vision in VISION
        if vision != "clip_projection"
        for settings, count in (
            ({}, PATCHES),
            ({"image_grid": 3}, 9),
            ({"image_grid": 2, "pooled_in_front": True}, 5),
        )
    ],
)
def test_image_tokens_are_as_many_as_the_config_says(vision, settings, count):
    if vision in ("resnet", "timm", "timm_registers"):  # towers that do not say how many patches they have
        settings = settings | {"vision_config": {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE}}
    model = tiny_model(vision, **settings)
    tokens = model.core.encode_images(pixels(3)).pooler_output
    assert tokens.shape == (3, count, model.config.vision_feature_size)
    assert model.get_image_features(pixels(3)).pooler_output.shape == (3, count, TEXT_WIDTH)
    assert model.config.image_seq_length == count


@pytest.mark.parametrize("vision", PREFIX_TOKENS)
def test_patches_leave_class_and_register_tokens_out(vision):
    model = tiny_model(vision, image_tokens="patches").core
    hidden = model.vision_tower(pixels()).last_hidden_state
    assert hidden.shape[1] == PREFIX_TOKENS[vision] + PATCHES
    torch.testing.assert_close(model.encode_images(pixels()).pooler_output, hidden[:, PREFIX_TOKENS[vision] :])


def test_the_grid_averages_its_cells():
    model = tiny_model("dinov2_registers", image_tokens="patches", image_grid=2).core
    hidden = model.vision_tower(pixels()).last_hidden_state
    by_place = hidden[:, 4:].reshape(2, 4, 4, VISION_WIDTH)  # rows, columns
    expected = [by_place[:, y : y + 2, x : x + 2].mean((1, 2)) for y in (0, 2) for x in (0, 2)]
    torch.testing.assert_close(model.encode_images(pixels()).pooler_output, torch.stack(expected, dim=1))


def test_the_grid_of_a_wide_image_keeps_rows_and_columns_apart():
    model = tiny_model("dinov2", image_tokens="patches", image_grid=2).core
    wide = torch.randn(1, 3, 16, 48)  # 2 × 6 patches
    hidden = model.vision_tower(wide).last_hidden_state
    by_place = hidden[:, 1:].reshape(1, 2, 6, VISION_WIDTH)
    expected = [by_place[:, y, x : x + 3].mean(1) for y in (0, 1) for x in (0, 3)]
    torch.testing.assert_close(model.encode_images(wide).pooler_output, torch.stack(expected, dim=1))


def test_pooled_features_are_the_towers_own():
    clip, projected = tiny_model("clip").core, tiny_model("clip_projection").core
    outputs = projected.vision_tower(pixels())
    for model, expected in (
        (clip, clip.vision_tower(pixels()).pooler_output),
        (projected, outputs.image_embeds),
        (tiny_model("vit_cls").core, tiny_model("vit_cls").core.vision_tower(pixels()).last_hidden_state[:, 0]),
    ):
        torch.testing.assert_close(model.encode_images(pixels()).pooler_output[:, 0], expected)
    assert outputs.image_embeds.shape[-1] != outputs.last_hidden_state.shape[-1]


def test_pooled_stands_in_front_of_the_patches():
    model = tiny_model("clip", image_tokens="patches", pooled_in_front=True).core
    outputs = model.vision_tower(pixels())
    tokens = model.encode_images(pixels()).pooler_output
    torch.testing.assert_close(tokens[:, 0], outputs.pooler_output)
    torch.testing.assert_close(tokens[:, 1:], outputs.last_hidden_state[:, 1:])


def test_image_features_computed_earlier_serve_as_pixels():
    model = tiny_model("clip", image_tokens="patches", image_grid=2, image_start="learned")
    batch = rows_of(model, [5, EOS], [6, 7, EOS])
    features = model.core.encode_images(pixels()).pooler_output
    assert features.shape == (2, 4, VISION_WIDTH)
    torch.testing.assert_close(
        model(**batch, image_features=features).logits, model(**batch, pixel_values=pixels()).logits
    )


def test_a_tower_may_differ_in_dtype_from_the_projector():
    model = tiny_model()
    model.core.vision_tower.bfloat16()
    model.core.language_model.bfloat16()
    output = model(**rows_of(model, [5, EOS]), pixel_values=pixels(1))
    output.loss.backward()
    assert output.loss.dtype == torch.float32
    assert all(grad.dtype == torch.float32 for grad in projector_gradients(model).values())


# What the language model reads


def language_inputs(model, input_ids, pixel_values):
    """What the language model reads, and the image tokens in it."""
    encoded = model.core.take_images(pixel_values)
    return model.core.prepare_language_inputs(input_ids, encoded), encoded.pooler_output


def test_the_language_model_reads_bos_image_text():
    model = tiny_model("clip", image_tokens="patches", image_grid=2)
    inputs, image = language_inputs(model, torch.tensor([[BOS, *[IMAGE] * 4, 7]]), pixels(1))
    table = model.get_input_embeddings().weight
    expected = torch.cat([table[BOS][None], image[0], table[7][None]])
    torch.testing.assert_close(inputs["inputs_embeds"][0], expected)


def test_a_learned_start_stands_at_position_0_and_is_trained():
    model = tiny_model("clip", image_start="learned")
    prompt = model.core.image_prompt(1)
    assert prompt.tolist() == [[IMAGE, IMAGE]]
    inputs, _ = language_inputs(model, prompt, pixels(1))
    torch.testing.assert_close(inputs["inputs_embeds"][0, 0], model.core.image_start)
    model(**rows_of(model, [5, EOS]), pixel_values=pixels(1)).loss.backward()
    assert model.core.image_start.grad.abs().sum() > 0


def test_a_learned_start_begins_at_the_scale_of_embeddings():
    model = tiny_model("clip", image_start="learned", text_config={"n_embd": 256})
    embeddings = model.get_input_embeddings().weight
    assert model.core.image_start.std().item() == pytest.approx(embeddings.std().item(), rel=0.3)


def test_without_a_start_the_image_stands_at_position_0():
    model = tiny_model("clip", image_start="none")
    prompt = model.core.image_prompt(1)
    inputs, image = language_inputs(model, prompt, pixels(1))
    assert prompt.tolist() == [[IMAGE]]
    torch.testing.assert_close(inputs["inputs_embeds"][0], image[0])


def test_gemma_scales_its_text_and_leaves_the_image_tokens_as_they_are():
    model = tiny_model("clip", "gemma3")
    inputs, image = language_inputs(model, torch.tensor([[BOS, IMAGE]]), pixels(1))
    torch.testing.assert_close(
        inputs["inputs_embeds"][0, 0], model.get_input_embeddings().weight[BOS] * TEXT_WIDTH**0.5
    )
    torch.testing.assert_close(inputs["inputs_embeds"][0, 1], image[0, 0])


def test_several_images_go_to_their_placeholders_in_order():
    model = tiny_model()
    ids = torch.tensor([[BOS, IMAGE, 7, IMAGE], [BOS, 8, 9, IMAGE]])
    inputs, image = language_inputs(model, ids, pixels(3))
    torch.testing.assert_close(inputs["inputs_embeds"][ids == IMAGE], image[:, 0])


def test_the_placeholder_is_never_looked_up():
    config = tiny_config(image_token_id=VOCAB_SIZE + 1000)
    model = build(config)
    assert model.get_input_embeddings().num_embeddings == VOCAB_SIZE
    assert model(**rows_of(model, [5, EOS]), pixel_values=pixels(1)).loss.isfinite()


def test_the_embedding_table_is_never_resized():
    model = tiny_model()
    for part in (model, model.core):
        with pytest.raises(ValueError, match="keeps its embedding table as it is"):
            part.resize_token_embeddings(VOCAB_SIZE + 1)
    assert model.get_input_embeddings().num_embeddings == VOCAB_SIZE


@pytest.mark.parametrize(("placeholders", "images"), [(1, 2), (2, 1), (0, 1), (1, 0)])
def test_placeholders_and_images_that_do_not_match_are_refused(placeholders, images):
    model = tiny_model()
    pixel_values = pixels(images) if images else None
    with pytest.raises(ValueError, match=f"The input has {placeholders} image placeholders .* for {images} image tok"):
        model(input_ids=torch.tensor([[BOS, *[IMAGE] * placeholders, 5]]), pixel_values=pixel_values)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        ({}, "exactly one of input_ids and inputs_embeds"),
        ({"input_ids": 1, "inputs_embeds": 1}, "exactly one of input_ids and inputs_embeds"),
        ({"inputs_embeds": 1, "pixel_values": 1}, "inputs_embeds hold their image tokens already"),
        ({"input_ids": 1, "pixel_values": 1, "image_features": 1}, "either pixel_values or image_features"),
        ({"input_ids": 1, "pixel_values": 1, "mm_encoder_outputs": 1}, "Pass the image once"),
    ],
)
def test_inputs_that_contradict_each_other_are_refused(wrong, sentence):
    model = tiny_model()
    values = {
        "input_ids": torch.tensor([[BOS, IMAGE]]),
        "inputs_embeds": torch.zeros(1, 2, TEXT_WIDTH),
        "pixel_values": pixels(1),
        "image_features": torch.zeros(1, 1, VISION_WIDTH),
        "mm_encoder_outputs": {"image": model.get_image_features(pixels(1))},
    }
    with pytest.raises(ValueError, match=sentence):
        model(**{name: values[name] for name in wrong})


@pytest.mark.parametrize("placed", [False, True], ids=["by length", "by position_ids"])
def test_more_tokens_than_positions_are_refused(placed):
    model = tiny_model()
    batch = rows_of(model, [5] * (POSITIONS - 1))
    position_ids = torch.arange(POSITIONS + 1)[None] if placed else None
    with pytest.raises(ValueError, match=f"{POSITIONS + 1} tokens .* exceed the {POSITIONS} positions of the gpt2"):
        model(**batch, pixel_values=pixels(1), position_ids=position_ids)


def test_as_many_tokens_as_positions_are_accepted():
    model = tiny_model()
    assert model(**rows_of(model, [5] * (POSITIONS - 2)), pixel_values=pixels(1)).loss.isfinite()


# Loss


def test_loss_is_the_cross_entropy_of_the_captions_and_their_ends():
    model = tiny_model()
    captions = [5, 6, 7, EOS], [8, EOS]
    batch = rows_of(model, *captions)
    output = model(**batch, pixel_values=pixels())
    log_probabilities = output.logits.log_softmax(-1)
    each = [
        -log_probabilities[row, 2 + i - 1, token]  # the token at 2 + i is predicted one position before
        for row, ids in enumerate(captions)
        for i, token in enumerate(ids)
    ]
    assert len(each) == 6
    torch.testing.assert_close(output.loss, torch.stack(each).mean())


def test_padding_weighs_nothing():
    model = tiny_model()
    alone = model(**rows_of(model, [8, EOS]), pixel_values=pixels(1)).loss
    padded = rows_of(model, [8, EOS], [5] * 20)
    padded = {name: value[:1] for name, value in padded.items()}
    torch.testing.assert_close(model(**padded, pixel_values=pixels(1)).loss, alone)


@pytest.mark.parametrize("length", [1, 2, 3])
def test_short_captions_have_a_loss(length):
    model = tiny_model()
    batch = rows_of(model, [5, 6, EOS][-length:])
    output = model(**batch, pixel_values=pixels(1))
    expected = functional.cross_entropy(output.logits[0, 1 : 1 + length], batch["input_ids"][0, 2:])
    torch.testing.assert_close(output.loss, expected)


def test_a_batch_without_targets_has_loss_0_and_no_gradient():
    model = tiny_model()
    batch = rows_of(model, [5, EOS])
    loss = model(**batch | {"labels": torch.full_like(batch["labels"], -100)}, pixel_values=pixels(1)).loss
    loss.backward()
    assert loss.item() == 0
    assert all((grad == 0).all() for grad in projector_gradients(model).values())


def test_a_row_without_targets_weighs_nothing():
    model = tiny_model()
    batch = rows_of(model, [5, 6, EOS], [7, 8, EOS])
    batch["labels"][1] = -100
    both = model(**batch, pixel_values=pixels()).loss
    first = {name: value[:1] for name, value in batch.items()}
    torch.testing.assert_close(both, model(**first, pixel_values=pixels()[:1]).loss)


def test_num_items_in_batch_is_what_the_sum_is_divided_by():
    model = tiny_model()
    whole = model(**rows_of(model, [5, 6, 7, EOS], [8, EOS]), pixel_values=pixels()).loss
    parts = [
        model(**rows_of(model, ids), pixel_values=pixels()[i : i + 1], num_items_in_batch=torch.tensor(6)).loss
        for i, ids in enumerate(([5, 6, 7, EOS], [8, EOS]))
    ]
    torch.testing.assert_close(sum(parts), whole)


@pytest.mark.parametrize("keep", [3, torch.tensor([1, 2, 3])], ids=["last", "named"])
def test_logits_to_keep_changes_the_logits_computed_and_not_the_loss(keep):
    model = tiny_model()
    batch = rows_of(model, [5, EOS])  # BOS image 5 EOS: only the positions 1 and 2 predict a target
    whole = model(**batch, pixel_values=pixels(1))
    kept = model(**batch, pixel_values=pixels(1), logits_to_keep=keep)
    assert kept.logits.shape == (1, 3, VOCAB_SIZE)
    torch.testing.assert_close(kept.logits, whole.logits[:, 1:])
    torch.testing.assert_close(kept.loss, whole.loss)


def test_return_dict_false_gives_a_tuple():
    model = tiny_model()
    batch = rows_of(model, [5, EOS])
    loss, logits = model(**batch, pixel_values=pixels(1), return_dict=False)[:2]
    assert loss.ndim == 0
    assert logits.shape == (1, 4, VOCAB_SIZE)


def test_no_cache_is_kept_where_a_loss_is_wanted():
    model = tiny_model()
    batch = rows_of(model, [5, EOS])
    assert model(**batch, pixel_values=pixels(1)).past_key_values is None
    del batch["labels"]
    assert model(**batch, pixel_values=pixels(1)).past_key_values is not None


# Packed rows


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("language", LANGUAGE)
@pytest.mark.parametrize("prompt", ["", "A photo of"])
def test_packed_captions_train_as_captions_in_rows_of_their_own(language, attention, prompt):
    model = tiny_model("clip", language, image_tokens="patches", image_grid=2)
    model.set_attn_implementation(attention)
    images = pixels()
    collator = CaptionCollator(
        tiny_processor(model.config), lambda rows: {"pixel_values": images[[row["image"] for row in rows]]}, prompt
    )
    rows = [
        {"captions": ["a dog", "two brown cats run", "x"], "image": 0},
        {"captions": ["the sea at night"], "image": 1},
    ]
    packed = model(**collator(rows)).loss
    packed.backward()
    packed_gradients = projector_gradients(model)
    model.zero_grad()

    captions = [(caption, row["image"]) for row in rows for caption in row["captions"]]
    total = torch.zeros(())
    count = sum(collator.count_tokens(rows))
    for caption, image in captions:  # plain rows: no mask, no positions, labels shifted by the model
        ids = collator([{"captions": [caption], "image": image}])["input_ids"]
        labels = ids.clone()
        labels[:, : len(collator.prefix)] = -100
        pixel_values = images[image : image + 1]
        total += model(input_ids=ids, pixel_values=pixel_values, labels=labels, num_items_in_batch=count).loss
    total.backward()

    torch.testing.assert_close(packed, total.detach(), rtol=1e-5, atol=0)
    for name, gradient in projector_gradients(model).items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(packed_gradients[name], gradient, rtol=1e-5, atol=1e-5 * scale)


# Frozen and trained


def train_steps(model: CaptionerForConditionalGeneration, steps: int = 4) -> list[float]:
    """Optimises everything that wants a gradient, as a plain loop would, with a weight decay that would show."""
    model.train()
    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=1e-2, weight_decay=0.5)
    batch = rows_of(model, [5, 6, 7, EOS], [8, 9, EOS])
    losses = []
    for _ in range(steps):
        loss = model(**batch, pixel_values=pixels()).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_training_leaves_the_towers_bit_identical():
    model = tiny_model("clip", "gpt2", image_start="learned")
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    losses = train_steps(model)
    assert losses[-1] < losses[0]
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name, p in model.named_parameters() if p.requires_grad}
    assert all("projector" in name or name == "core.image_start" for name in changed)
    assert all(p.grad is None for p in model.core.vision_tower.parameters())
    assert all(p.grad is None for p in model.core.language_model.parameters())


def test_frozen_towers_stay_in_eval_mode():
    dropout = {"resid_pdrop": 0.5, "embd_pdrop": 0.5, "attn_pdrop": 0.5}
    model = tiny_model("clip", "gpt2", text_config=dropout).train()
    assert model.training
    assert model.core.multi_modal_projector.training
    assert not any(module.training for module in model.core.vision_tower.modules())
    assert not any(module.training for module in model.core.language_model.modules())
    batch = rows_of(model, [5, 6, EOS])
    losses = {model(**batch, pixel_values=pixels(1)).loss.item() for _ in range(3)}
    assert losses == {model.eval()(**batch, pixel_values=pixels(1)).loss.item()}


def train_step(model: CaptionerForConditionalGeneration) -> tuple[int, dict[str, torch.Tensor]]:
    """The bytes kept for the backward pass, and the projector's gradients."""
    rows = rows_of(model, [5, 6, 7, EOS], [8, EOS])
    kept = []
    model.zero_grad()
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.nbytes) or tensor, lambda t: t):
        loss = model(**rows, pixel_values=pixels()).loss
    loss.backward()
    return sum(kept), {name: gradient.clone() for name, gradient in projector_gradients(model).items()}


@pytest.mark.parametrize("language", LANGUAGE)
def test_activation_checkpointing_saves_memory_in_frozen_towers_and_changes_nothing_else(language):
    model = tiny_model(language=language).train()
    plain, expected = train_step(model)
    enable, disable = (
        getattr(model, f"activation_checkpointing_{verb}", None) or getattr(model, f"gradient_checkpointing_{verb}")
        for verb in ("enable", "disable")
    )
    enable()
    checkpointed, found = train_step(model)
    assert checkpointed < 0.6 * plain
    assert not any(module.training for module in model.core.language_model.modules())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    caption = model.generate(pixel_values=pixels(), max_new_tokens=5, do_sample=False)  # with its cache
    disable()
    assert torch.equal(model.generate(pixel_values=pixels(), max_new_tokens=5, do_sample=False), caption)
    assert train_step(model)[0] == plain


def test_activation_checkpointing_keeps_hooks_in_place_of_forward():
    model = tiny_model(language="llama").train()
    model.gradient_checkpointing_enable()
    layer = model.core.language_model.model.layers[0]
    calls = []

    def hooked(*args, **kwargs):  # as accelerate's hooks are
        calls.append(1)
        return type(layer).forward(layer, *args, **kwargs)

    layer.forward = hooked
    for _ in range(2):
        model(**rows_of(model, [5, EOS]), pixel_values=pixels(1))
    assert len(calls) == 2
    assert vars(layer)["forward"] is hooked


def test_a_language_model_that_is_trained_is_in_train_mode():
    model = tiny_model(freeze_language=False).train()
    assert model.core.language_model.training
    assert not model.core.vision_tower.training
    model(**rows_of(model, [5, EOS]), pixel_values=pixels(1)).loss.backward()
    assert model.core.language_model.get_input_embeddings().weight.grad.abs().sum() > 0


def test_a_vision_tower_that_is_trained_gets_gradients():
    model = tiny_model(freeze_vision=False)
    model(**rows_of(model, [5, EOS]), pixel_values=pixels(1)).loss.backward()
    assert all(p.grad is not None for p in model.core.vision_tower.encoder.parameters())


def test_a_single_vision_parameter_unfrozen_by_hand_gets_its_gradient():
    model = tiny_model()
    weight = model.core.vision_tower.encoder.layers[0].mlp.fc1.weight.requires_grad_(True)
    model(**rows_of(model, [5, EOS]), pixel_values=pixels(1)).loss.backward()
    assert weight.grad.abs().sum() > 0


def test_a_frozen_vision_tower_records_no_graph():
    model = tiny_model()
    assert not model.core.encode_images(pixels()).pooler_output.requires_grad
    assert model.get_image_features(pixels()).pooler_output.requires_grad


def test_gradients_reach_pixels_that_ask_for_them():
    model = tiny_model()
    image = pixels(1).requires_grad_(True)
    model(**rows_of(model, [5, EOS]), pixel_values=image).loss.backward()
    assert image.grad.abs().sum() > 0


def test_a_tiny_set_is_learnt_by_heart():
    torch.manual_seed(0)
    model = tiny_model("clip", "qwen2", image_tokens="patches")
    captions = [[40, 41, EOS], [50, 51, EOS]]
    batch = rows_of(model, *captions)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    for _ in range(100):
        loss = model(**batch, pixel_values=pixels()).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.1
    generated = model.generate(pixel_values=pixels(), max_new_tokens=3, do_sample=False)
    assert generated[:, -3:].tolist() == captions


# The projector


def test_the_projector_is_two_layers_around_an_exact_gelu():
    projector = MultiModalProjector(CaptionerConfig())
    features = torch.randn(3, 512)
    hidden = functional.gelu(features @ projector.linear_1.weight.T + projector.linear_1.bias)
    torch.testing.assert_close(projector(features), hidden @ projector.linear_2.weight.T + projector.linear_2.bias)


def test_the_projector_starts_at_pytorchs_scale_whatever_the_towers_start_at():
    model = tiny_model("clip", "gpt2", projector_expansion=40)
    for linear in (model.core.multi_modal_projector.linear_1, model.core.multi_modal_projector.linear_2):
        bound = linear.in_features**-0.5
        assert linear.weight.abs().max() <= bound
        assert linear.weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)


def test_fit_scale_gives_embeddings_of_the_wanted_spread():
    projector = tiny_model().core.multi_modal_projector
    features = 30 * torch.randn(500, VISION_WIDTH) + 7
    features[:, 0] = 5  # a constant feature must not blow up
    before = sum(p.numel() for p in projector.parameters())
    fit_scale(projector, features, output_std=0.13)
    assert projector(features).std().item() == pytest.approx(0.13, rel=1e-4)
    hidden = projector.linear_1(features)
    torch.testing.assert_close(hidden.mean(0), hidden.mean(0).clamp(-2, 2))
    assert sum(p.numel() for p in projector.parameters()) == before


def test_fit_scale_of_a_single_feature_vector_stays_finite():
    projector = tiny_model("dinov2", "gpt2").core.multi_modal_projector
    feature = torch.randn(1, 1, VISION_WIDTH)
    fit_scale(projector, feature, output_std=0.3)
    assert projector.linear_1.weight.abs().max() < 10
    assert torch.isfinite(projector(torch.randn(4, VISION_WIDTH))).all()

"""compose(): towers from folders and from configs, what it settles between them, and what it refuses."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_models import (
    INITIALIZER_RANGE,
    LANGUAGE,
    VISION,
    VOCAB_SIZE,
    image_processor,
    one_special_tokenizer,
    picture,
    save_language_model,
    save_vision_tower,
)
from transformers import BitImageProcessorPil, CLIPConfig, CLIPModel

from vlm_caption import BackboneError, compose
from vlm_caption.towers.tokenizers import byte_tokenizer

CLIP, GPT2 = VISION["clip"]["vision_config"], LANGUAGE["gpt2"]


@pytest.fixture(scope="module")
def vision(tmp_path_factory) -> str:
    return save_vision_tower(tmp_path_factory.mktemp("vision"))


@pytest.fixture(scope="module")
def language(tmp_path_factory) -> str:
    return save_language_model(tmp_path_factory.mktemp("language"))


def test_towers_have_the_weights_of_their_folders(vision, language):
    model = compose(vision, language)[0]
    for tower, source in ((model.core.vision_tower, vision), (model.core.language_model, language)):
        saved, found = load_file(Path(source) / "model.safetensors"), tower.state_dict()
        assert saved
        assert all(found[name].equal(saved[name]) for name in saved)


def test_a_composed_model_is_ready_to_train(vision, language):
    model, processor = compose(vision, language)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained == {name for name, _ in model.named_parameters() if "multi_modal_projector" in name}
    projector = model.core.multi_modal_projector
    assert 0 < projector.linear_1.weight.abs().max() <= projector.linear_1.in_features**-0.5
    assert model.config.vision_backbone["name"] == vision
    assert model.config.external_towers == []
    inputs = processor(images=picture(), return_tensors="pt")
    assert model.generate(**inputs, max_new_tokens=3, min_new_tokens=3).shape == (1, 5)


def test_two_projectors_start_differently(vision, language):
    first, second = (compose(vision, language)[0].core.multi_modal_projector.linear_1.weight for _ in range(2))
    assert not first.equal(second)


def test_a_learned_start_begins_at_the_scale_of_embeddings(vision, language):
    model = compose(vision, language, image_start="learned")[0]
    assert model.core.image_start.std().item() == pytest.approx(model.core.vocabulary().std().item(), rel=0.5)


def test_the_same_seed_gives_the_same_model(vision, language):
    models = []
    for _ in range(2):
        torch.manual_seed(3)
        models.append(compose(vision, language, image_start="learned")[0].state_dict())
    assert all(models[0][name].equal(models[1][name]) for name in models[0])


def test_only_the_language_model_comes_in_a_dtype_of_its_own(vision, language):
    torch.manual_seed(3)
    whole = compose(vision, language)[0].state_dict()
    torch.manual_seed(3)
    for name, tensor in compose(vision, language, dtype={"text_config": torch.bfloat16})[0].state_dict().items():
        expected = whole[name].bfloat16() if name.startswith("core.language_model.") else whole[name]
        torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_an_image_size_that_the_image_processor_does_not_make_is_refused(vision, language):
    size = compose(vision, language)[1].image_processor.size["height"]
    compose(vision, language, image_size=size)
    with pytest.raises(
        ValueError, match=f"image_size is 16, and the image processor makes {size}: leave image_size out"
    ):
        compose(vision, language, image_size=16)


def test_a_dtype_may_be_asked_for(vision, language):
    for sources in ((vision, language), (CLIP, GPT2)):
        model = compose(*sources, dtype=torch.bfloat16)[0]
        assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    with pytest.raises(ValueError, match="dtype has no 'language_model': give one dtype"):
        compose(vision, language, dtype={"language_model": torch.bfloat16})


@pytest.mark.parametrize("family", LANGUAGE)
def test_random_language_models_read_and_write_bytes(family):
    model, processor = compose(CLIP, LANGUAGE[family] | {"vocab_size": 7})
    assert model.get_input_embeddings().num_embeddings == VOCAB_SIZE == len(byte_tokenizer())
    assert (model.config.vision_backbone, model.config.text_backbone) == (None, None)
    inputs = processor(images=picture(), text="Zoë", return_tensors="pt")
    assert processor.decode(inputs["input_ids"][0], skip_special_tokens=True) == "Zoë"
    assert model(**inputs).logits.isfinite().all()


def test_the_settings_of_a_random_tower_are_left_as_the_caller_wrote_them():
    settings = dict(GPT2)
    compose(CLIP, settings)
    assert settings == GPT2


def test_a_pretrained_and_a_random_tower_go_together(vision, language):
    model = compose(vision, GPT2)[0]
    saved = load_file(Path(vision) / "model.safetensors")
    assert all(model.core.vision_tower.state_dict()[name].equal(saved[name]) for name in saved)
    assert model.core.language_model.get_input_embeddings().weight.std() == pytest.approx(INITIALIZER_RANGE, rel=0.1)
    saved = load_file(Path(language) / "model.safetensors")
    model = compose(CLIP, language)[0]
    assert all(model.core.language_model.state_dict()[name].equal(saved[name]) for name in saved)


def test_clips_own_checkpoint_gives_its_vision_half_with_the_projection(tmp_path, language):
    text = {"vocab_size": 50, "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    config = CLIPConfig(
        text_config=text | {"num_attention_heads": 2, "eos_token_id": 2},
        vision_config={name: value for name, value in CLIP.items() if name != "model_type"} | {"projection_dim": 12},
        projection_dim=12,
    )
    clip = CLIPModel(config).eval()
    clip.save_pretrained(tmp_path)
    image_processor().save_pretrained(tmp_path)
    pooled, processor = compose(str(tmp_path), language)
    projected = compose(str(tmp_path), language, pooled_feature="image_embeds")[0]
    pixel_values = processor(images=picture(), return_tensors="pt")["pixel_values"]
    outputs = clip.vision_model(pixel_values)
    found = pooled.eval().core.encode_images(pixel_values).pooler_output[:, 0]
    torch.testing.assert_close(found, outputs.pooler_output)
    found = projected.eval().core.encode_images(pixel_values).pooler_output[:, 0]
    torch.testing.assert_close(found, clip.visual_projection(outputs.pooler_output))


def test_a_tokenizer_without_padding_gives_generation_its_end_token(tmp_path, vision):
    source = save_language_model(tmp_path, tokenizer=one_special_tokenizer())
    model, processor = compose(vision, source)
    assert processor.tokenizer.pad_token_id == 256
    settings = model.generation_config
    assert (settings.bos_token_id, settings.eos_token_id, settings.pad_token_id) == (256, 256, 256)


def test_a_tokenizer_longer_than_the_embedding_table_pushes_the_placeholder_back(tmp_path, vision):
    tokenizer = byte_tokenizer()
    tokenizer.add_tokens([f"<extra {i}>" for i in range(5)], special_tokens=True)
    model, processor = compose(vision, save_language_model(tmp_path, tokenizer=tokenizer))
    assert model.config.image_token_id == processor.image_token_id == VOCAB_SIZE + 5
    assert model(**processor(images=picture(), return_tensors="pt")).logits.isfinite().all()


def test_pillow_resizes_with_and_without_a_checkpoint(vision, language):
    for source in (vision, CLIP):
        processor = compose(source, language)[1]
        assert type(processor.image_processor) is BitImageProcessorPil
        assert processor(images=picture(), return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)


def test_a_pooler_that_the_checkpoint_lacks_is_refused_where_it_is_used(tmp_path, language):
    source = save_vision_tower(tmp_path, "vit_cls")
    tensors = load_file(tmp_path / "model.safetensors")
    without = {name: tensor for name, tensor in tensors.items() if "pooler" not in name}
    assert len(without) < len(tensors)
    save_file(without, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        BackboneError, match=r"lacks 2 weights of the vision_tower \(pooler.* choose another pooled_fea"
    ):
        compose(source, language)
    model, processor = compose(source, language, pooled_feature="cls")
    assert model(**processor(images=picture(), return_tensors="pt")).logits.isfinite().all()
    again = compose(source, language, pooled_feature="cls")[0].core.vision_tower.state_dict()
    for name, tensor in model.core.vision_tower.state_dict().items():
        assert tensor.equal(again[name]), "else features of the same tower are computed anew in every process"


def test_patches_are_as_many_as_the_image_processors_pixels_have(tmp_path, language):
    """The config of DINOv2's checkpoints says 518 pixels, and their image processor makes 224."""
    source = save_vision_tower(tmp_path, "dinov2")
    BitImageProcessorPil(size={"shortest_edge": 24}, crop_size={"height": 16, "width": 16}).save_pretrained(tmp_path)
    model, processor = compose(source, language, image_tokens="patches")
    assert (model.config.image_size, model.config.image_seq_length) == (16, 4)
    inputs = processor(images=picture(), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    assert model(**inputs).logits.isfinite().all()
    assert compose(save_vision_tower(tmp_path, "dinov2"), language)[0].config.image_size is None


def test_a_config_that_names_no_family_is_refused(language):
    with pytest.raises(ValueError, match="needs a model_type"):
        compose({"hidden_size": 16}, language)


def test_a_tower_that_is_not_there_is_refused(tmp_path, language):
    with pytest.raises(BackboneError, match="neither an existing directory nor a Hugging Face Hub id"):
        compose(str(tmp_path / "nowhere"), language)


def test_settings_reach_the_config(vision, language):
    config = compose(vision, language, image_tokens="patches", image_grid=2, projector_expansion=2)[0].config
    assert (config.image_tokens, config.image_seq_length, config.projector_expansion) == ("patches", 4, 2)


def test_a_setting_that_does_not_exist_is_refused():
    with pytest.raises(ValueError, match=r"There is no setting image_gird: did you mean image_grid\?"):
        compose({"model_type": "dinov2"}, {"model_type": "gpt2"}, image_gird=4)

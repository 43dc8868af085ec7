"""Language models of every family, with tiny random weights: packed captions, generation, saving; or a refusal."""

import pytest
import torch
from tiny_models import LANGUAGE, OTHER_LANGUAGE, REFUSED_LANGUAGE, pixels, tiny_model, tiny_processor

from vlm_caption import CaptionerForConditionalGeneration
from vlm_caption.core.errors import ConfigError
from vlm_caption.data.collator import CaptionCollator
from vlm_caption.training.packing_check import check_packing

ROW = {"captions": ["a b", "some longer caption", "c"]}


def test_image_tokens_are_as_wide_as_the_embeddings_whatever_the_layers_are():
    """OPT-350M's embeddings are half as wide as its layers."""
    model = tiny_model(language="opt", text_config={"word_embed_proj_dim": 8}, image_end="learned")
    embeds = model.core.get_image_features(pixel_values=pixels(1)).pooler_output
    assert embeds.shape == (1, model.config.image_seq_length, 8)
    assert model.generate(pixel_values=pixels(1), max_new_tokens=2).shape[0] == 1


@pytest.mark.parametrize("language", [*LANGUAGE, *OTHER_LANGUAGE])
def test_a_family_trains_packed_captions_generates_what_forward_says_and_is_saved(language, tmp_path):
    model = tiny_model("vit_cls", language, image_tokens="patches", image_grid=2)
    model.core.language_model.set_attn_implementation("eager")  # as in training on a CPU
    check_packing(model)
    collator = CaptionCollator(tiny_processor(model.config), lambda rows: {"pixel_values": pixels(len(rows))})

    packed = model(**collator([ROW]), num_items_in_batch=1).loss
    alone = [model(**collator([{"captions": [text]}]), num_items_in_batch=1).loss for text in ROW["captions"]]
    torch.testing.assert_close(packed, torch.stack(alone).sum(), rtol=1e-5, atol=1e-4)
    packed.backward()
    assert all(p.grad is not None for p in model.core.multi_modal_projector.parameters())

    ids = model.core.image_prompt(2)
    for _ in range(4):
        logits = model(input_ids=ids, pixel_values=pixels()).logits[:, -1]
        logits[:, model.generation_config.eos_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
    generated = model.generate(pixel_values=pixels(), do_sample=False, max_new_tokens=4, min_new_tokens=4)
    assert generated.tolist() == ids.tolist()

    model.save_pretrained(tmp_path)
    loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path)
    loaded.core.language_model.set_attn_implementation("eager")
    assert loaded(input_ids=ids, pixel_values=pixels()).logits.equal(
        model(input_ids=ids, pixel_values=pixels()).logits
    )


@pytest.mark.parametrize("language", REFUSED_LANGUAGE)
def test_a_family_that_lets_one_caption_see_another_is_refused(language):
    model = tiny_model("vit_cls", language)
    with pytest.raises(ConfigError, match=f"^model.language: {language} language models cannot be trained here"):
        check_packing(model)

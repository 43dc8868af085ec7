"""Tokenizers of language models with random weights: bytes, the captions' characters or subwords, or a named one."""

import pytest
from datasets import Dataset
from hypothesis import given
from hypothesis import strategies as st
from tiny_models import LANGUAGE, VISION, one_special_tokenizer, picture, save_language_model
from transformers import PreTrainedTokenizerFast

from vlm_caption import BackboneError, CaptionerForConditionalGeneration, CaptionerProcessor, compose
from vlm_caption.data.opening import each_text
from vlm_caption.towers.tokenizers import (
    SUBWORDS,
    byte_tokenizer,
    character_tokenizer,
    new_tokenizer,
    subword_tokenizer,
)

CAPTIONS = ["A dog runs.", "Zoë  sees\ttwo\ncats: 👩‍👩‍👧 e\u0301!"]
VIT, GPT2 = VISION["vit_cls"]["vision_config"], LANGUAGE["gpt2"]


def encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids


@given(st.text(st.sampled_from(sorted(set("".join(CAPTIONS)))), max_size=40))
def test_text_of_known_characters_comes_back_as_it_was(text):
    tokenizer = character_tokenizer(CAPTIONS)
    ids = encode(tokenizer, text)
    assert len(ids) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == text


@given(st.text(max_size=20))
def test_every_text_has_a_token_a_character_and_unknown_ones_one_token(text):
    tokenizer = character_tokenizer(CAPTIONS)
    ids = encode(tokenizer, text)
    assert [i == tokenizer.unk_token_id for i in ids] == [c not in "".join(CAPTIONS) for c in text]


def test_the_order_of_the_captions_does_not_count():
    first, second = character_tokenizer(iter(CAPTIONS)), character_tokenizer(CAPTIONS[::-1] * 2)
    assert first.get_vocab() == second.get_vocab()
    characters = [token for token, _ in sorted(first.get_vocab().items(), key=lambda item: item[1])][4:]
    assert characters == sorted(set("".join(CAPTIONS)))


def test_start_end_and_padding_are_no_characters():
    tokenizer = character_tokenizer(["<eos> <pad>"])
    special = {tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.unk_token_id}
    assert special == {0, 1, 2, 3}
    ids = encode(tokenizer, "<eos>")
    assert len(ids) == 5
    assert not special & set(ids)


def test_saved_and_loaded_it_is_the_same(tmp_path):
    tokenizer = character_tokenizer(CAPTIONS)
    tokenizer.save_pretrained(tmp_path)
    loaded = PreTrainedTokenizerFast.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab()
    assert encode(loaded, CAPTIONS[1] + "Q") == [*encode(tokenizer, CAPTIONS[1]), tokenizer.unk_token_id]
    assert loaded.decode(encode(loaded, CAPTIONS[1]), skip_special_tokens=True) == CAPTIONS[1]


def test_a_random_language_model_speaks_its_captions_characters():
    model, processor = compose(VIT, GPT2, tokenizer="characters", captions=CAPTIONS, pooled_feature="cls")
    tokenizer = processor.tokenizer
    size = 4 + len(set("".join(CAPTIONS)))
    assert model.get_input_embeddings().num_embeddings == model.config.image_token_id == size
    config = model.config.text_config
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, 2, 0)
    inputs = processor(images=picture(), text="A dog", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 2 + 5)
    assert tokenizer.decode(inputs["input_ids"][0], skip_special_tokens=True) == "A dog"
    assert model(**inputs).logits.isfinite().all()


def test_what_stands_around_an_answer_is_known_as_well():
    rows = Dataset.from_dict({"captions": [["no"], ["2"]], "questions": [["Is it?"], ["How many?"]]})
    tokenizer = character_tokenizer(each_text(rows, "<image>Q: {question}"))
    assert tokenizer.unk_token_id not in tokenizer("Q: Is it? How many? no 2", add_special_tokens=False).input_ids
    assert "<" not in tokenizer.get_vocab()


def test_captions_may_be_as_long_as_the_positions_allow_and_have_no_unknown_character():
    model, processor = compose(VIT, GPT2, tokenizer="characters", captions=CAPTIONS, pooled_feature="cls")
    assert model.generation_config.max_new_tokens == GPT2["n_positions"] - 2
    head = model.state_dict()["core.language_model.lm_head.weight"]
    head[processor.tokenizer.unk_token_id] *= 1e4  # as likely as can be
    inputs = processor(images=[picture(seed) for seed in range(4)], return_tensors="pt")
    for settings in ({}, {"num_beams": 2}, {"do_sample": True}):
        written = model.generate(**inputs, **settings, max_new_tokens=8)
        assert not (written == processor.tokenizer.unk_token_id).any()
    model = compose(VIT, LANGUAGE["llama"], tokenizer="characters", captions=CAPTIONS)[0]
    assert model.generation_config.max_new_tokens == 200  # it has no table of positions


def test_a_checkpoint_carries_its_characters(tmp_path):
    model, processor = compose(VIT, GPT2, tokenizer="characters", captions=CAPTIONS, pooled_feature="cls")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    loaded = CaptionerForConditionalGeneration.from_pretrained(tmp_path)
    assert loaded.config.external_towers == []
    assert loaded.generation_config.suppress_tokens == [3]
    tokenizer = CaptionerProcessor.from_pretrained(tmp_path).tokenizer
    assert tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    assert encode(tokenizer, CAPTIONS[0]) == encode(processor.tokenizer, CAPTIONS[0])


def test_a_random_language_model_takes_a_named_tokenizer(tmp_path):
    folder = save_language_model(tmp_path, tokenizer=one_special_tokenizer())
    model, processor = compose(VIT, GPT2, tokenizer=folder, pooled_feature="cls")
    assert model.get_input_embeddings().num_embeddings == 257
    assert (model.config.text_config.bos_token_id, model.config.text_config.eos_token_id) == (256, 256)
    assert model(**processor(images=picture(), return_tensors="pt")).logits.isfinite().all()


def test_bytes_are_what_nothing_said_means():
    vocabularies = [compose(VIT, GPT2, tokenizer=name)[1].tokenizer.get_vocab() for name in (None, "bytes")]
    assert vocabularies[0] == vocabularies[1]


@given(st.text(max_size=20))
def test_every_text_comes_back_from_subwords_as_it_was(text):
    tokenizer = subword_tokenizer(CAPTIONS)
    ids = encode(tokenizer, text)
    assert len(ids) <= len(text.encode())
    assert tokenizer.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids) == text


def test_a_word_of_several_captions_is_one_subword_and_a_rare_one_is_several():
    tokenizer = subword_tokenizer([f"A dog is running after {thing}." for thing in ("cats", "balls", "zeppelins")])
    assert tokenizer.tokenize("A dog is running") == ["A", "Ġdog", "Ġis", "Ġrunning"]
    assert len(tokenizer.tokenize(" zeppelins")) > 1


def test_subwords_do_not_depend_on_the_order_of_the_captions():
    captions = [
        f"{colour} {thing} {place}." for colour in ("red", "blue") for thing in ("car", "cat") for place in "ab"
    ]
    assert subword_tokenizer(captions).get_vocab() == subword_tokenizer(iter(captions[::-1])).get_vocab()
    assert len(subword_tokenizer(f"word{i} word{i}" for i in range(9999))) == SUBWORDS


def test_a_random_language_model_writes_its_captions_subwords():
    model, processor = compose(VIT, GPT2, tokenizer="subwords", captions=CAPTIONS * 2, pooled_feature="cls")
    assert model.get_input_embeddings().num_embeddings == model.config.image_token_id == processor.tokenizer.vocab_size
    inputs = processor(images=picture(), text="A dog", return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 2 + 2)
    assert model(**inputs).logits.isfinite().all()


@pytest.mark.parametrize("name", ["characters", "subwords"])
def test_a_tokenizer_of_captions_needs_captions(name):
    with pytest.raises(ValueError, match="made of the captions to train on: pass them as captions"):
        compose(VIT, GPT2, tokenizer=name)


def test_a_pretrained_language_model_keeps_its_own_tokenizer(tmp_path):
    language = save_language_model(tmp_path)
    with pytest.raises(ValueError, match="is for a language model given by its config, and"):
        compose(VIT, language, tokenizer="characters", captions=CAPTIONS)


def test_a_folder_without_a_tokenizer_is_refused(tmp_path):
    with pytest.raises(
        BackboneError, match=r"holds no tokenizer_config\.json: name one that a tokenizer was saved to"
    ):
        new_tokenizer(str(tmp_path), None)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path):
    tokenizer = byte_tokenizer()
    tokenizer.eos_token = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no end token, so captions would never end: choose another"):
        new_tokenizer(str(tmp_path), None)


def test_a_random_language_model_of_bytes_writes_captions_as_long():
    generation = compose(VIT, LANGUAGE["llama"])[0].generation_config
    assert (generation.max_new_tokens, generation.suppress_tokens) == (200, None)
    assert compose(VIT, GPT2, pooled_feature="cls")[0].generation_config.max_new_tokens == GPT2["n_positions"] - 2

"""Captions written step by step: the tokens of transformers' `generate`, with less work."""

import gc
from pathlib import Path

import pytest
import torch
from tiny_models import EOS, LANGUAGE, PAD, picture, pixels, tiny_model, tiny_processor

from vlm_caption.captioning import generation
from vlm_caption.captioning.captioner import Captioner
from vlm_caption.captioning.generation import GenerationSettings, generate, token_log_probs
from vlm_caption.captioning.stepwise import known_settings

# So many that some captions end before others.
ENDS = [EOS, *range(10, 60)]

SETTINGS = [
    {},
    {"num_beams": 3},
    {"num_beams": 3, "num_return_sequences": 2, "length_penalty": 2.0, "early_stopping": True},
    {"no_repeat_ngram_size": 2},
    {"num_beams": 3, "no_repeat_ngram_size": 2, "min_new_tokens": 4},
    {"num_beams": 2, "repetition_penalty": 1.7, "suppress_tokens": [70, 100, 101]},
]


def build(language: str):
    model = tiny_model(language=language)
    model.generation_config.update(max_new_tokens=8, eos_token_id=ENDS, pad_token_id=PAD)
    return model, tiny_processor(model.config)


def written(model, processor, **settings):
    """The captions of three pictures behind prompts of three lengths, and the pictures' features."""
    features = model.core.encode_images(pixels(3)).pooler_output
    prompt = model.core.image_prompt(1)[0].tolist()
    prompts = [prompt, [*prompt, 70, 71], [*prompt, 80]]
    return generate(model, processor, prompts, {"image_features": features}, GenerationSettings(settings)), features


@pytest.mark.parametrize("language", sorted(LANGUAGE))
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
@torch.no_grad()
def test_tokens_are_those_of_generate(language, settings, monkeypatch):
    model, processor = build(language)
    ours, _ = written(model, processor, **settings)
    monkeypatch.setattr(generation, "known_settings", lambda *_: None)
    theirs, _ = written(model, processor, **settings)
    assert ours.log_probs is not None
    assert theirs.log_probs is None
    assert (ours.texts, ours.finished) == (theirs.texts, theirs.finished)
    width = min(ours.is_caption.shape[1], theirs.is_caption.shape[1])
    assert ours.is_caption[:, :width].equal(theirs.is_caption[:, :width])
    assert ours.new_ids[ours.is_caption].equal(theirs.new_ids[theirs.is_caption])


@torch.no_grad()
def test_a_token_has_the_log_probability_of_a_pass_over_the_whole_caption():
    model, processor = build("llama")
    found, features = written(model, processor, num_beams=3, no_repeat_ngram_size=2)
    torch.testing.assert_close(found.log_probs, token_log_probs(model, found, features), rtol=0, atol=1e-4)


@pytest.mark.parametrize("beams", [1, 3])
@torch.no_grad()
def test_each_prompt_is_read_once_and_rows_that_have_ended_leave(beams):
    model, processor = build("llama")
    rows = []
    model.core.language_model.register_forward_hook(lambda *seen: rows.append(len(seen[-1].logits)))
    found, _ = written(model, processor, num_beams=beams, early_stopping=True)
    lengths = found.is_caption.sum(dim=1).tolist()
    assert rows[0] == 3
    if beams == 1:
        active = [sum(length > step for length in lengths) for step in range(1, max(lengths))]
        assert rows[1:] == [count if count == 1 else max(count, 4) for count in active]
    assert rows[-1] < beams * 3


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": True},
        {"num_beam_groups": 2, "num_beams": 2},
        {"stop_strings": ["."]},
        {"logits_processor": []},
        {"max_length": 20},
        {"forced_eos_token_id": EOS},
        {"cache_implementation": "offloaded"},
    ],
    ids=str,
)
def test_what_only_generate_knows_is_left_to_it(settings):
    model, _ = build("gpt2")
    assert known_settings(model, settings) is None
    assert known_settings(model, {"num_beams": 2, "temperature": 0.0, "use_cache": True}).num_beams == 2


def test_settings_of_the_language_model_count_where_the_captioner_has_none():
    model, _ = build("gpt2")
    model.core.language_model.generation_config.update(no_repeat_ngram_size=2, num_beams=4)
    model.generation_config.num_beams = 3
    settings = known_settings(model, {})
    assert (settings.no_repeat_ngram_size, settings.num_beams) == (2, 3)
    model.core.language_model.generation_config.update(renormalize_logits=True)
    assert known_settings(model, {}) is None


def test_too_long_a_caption_is_refused_before_it_is_written():
    model, processor = build("gpt2")
    with pytest.raises(ValueError, match="positions of the gpt2 language model: lower max_new_tokens"):
        written(model, processor, max_new_tokens=1000)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads the memory of the process from Linux")
def test_hundreds_of_pictures_take_the_memory_of_a_few():
    model, processor = build("llama")
    model.generation_config.max_new_tokens = 2
    captioner = Captioner(model, processor)

    def memory_after(count: int) -> int:
        for _ in captioner.caption_each((picture(number) for number in range(count)), batch_size=8):
            pass
        gc.collect()
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    few = memory_after(40)
    assert memory_after(240) - few < 8_000_000

"""Sampling for training on rewards: the model's own distribution, by a cache that images share."""

import pytest
import torch
from tiny_models import pixels, tiny_model

from vlm_caption.captioning.sampling import beam_captions, draw_tokens, sample_captions

LONGEST = 7
ENDS = list(range(2, 259, 4))  # so many that some captions end before others


@pytest.mark.parametrize("language", ["gpt2", "llama", "gemma3"])
def test_captions_are_those_of_the_whole_model_without_a_cache(language):
    model = tiny_model(language=language)
    model.generation_config.update(max_new_tokens=LONGEST, eos_token_id=ENDS)
    features = model.core.encode_images(pixels(3)).pooler_output
    prefix = [*model.core.image_prompt(1)[0].tolist(), 70, 71]
    count, temperature = 6, 8.0
    samples = sample_captions(
        model, prefix, {"image_features": features}, count, temperature, torch.Generator().manual_seed(3)
    )
    draws = torch.rand(LONGEST, 3 * count, generator=torch.Generator().manual_seed(3))
    expected: list[list[int]] = []
    for row in range(3 * count):
        caption: list[int] = []
        while len(caption) < LONGEST and caption[-1:] not in [[end] for end in ENDS]:
            with torch.no_grad():
                logits = model(
                    input_ids=torch.tensor([prefix + caption]), image_features=features[row // count][None]
                ).logits[:, -1]
            caption.append(int(draw_tokens(logits / temperature, draws[len(caption), row][None])))
        expected.append(caption)
    assert samples.token_ids == expected
    assert samples.ended == [caption[-1] in ENDS for caption in expected]
    assert len({len(caption) for caption in expected}) > 2
    assert 0 < sum(samples.ended) < len(expected)


def test_a_token_is_drawn_as_often_as_it_is_probable():
    logits = torch.tensor([[0.0, 1.0, float("-inf"), -2.0, 3.0]])
    count = 10_000
    drawn = draw_tokens(logits.expand(count, -1), (torch.arange(count) + 0.5) / count)
    shares = torch.bincount(drawn, minlength=5) / count
    torch.testing.assert_close(shares, torch.softmax(logits[0], dim=0), rtol=0, atol=2 / count)


@pytest.mark.parametrize("draw", [0.0, 1 - 2**-24])
def test_a_token_that_is_impossible_is_never_drawn(draw):
    logits = torch.full((1, 50_000), float("-inf"))
    logits[0, 20_000:20_010] = 0.0
    assert int(draw_tokens(logits, torch.tensor([draw]))) in range(20_000, 20_010)


def test_the_models_settings_for_captioning_do_not_matter():
    model = tiny_model(language="llama")
    model.generation_config.update(max_new_tokens=LONGEST)
    arguments = (model.core.image_prompt(1)[0].tolist(), {"pixel_values": pixels(2)}, 4, 1.0)
    plain = sample_captions(model, *arguments, torch.Generator().manual_seed(0))
    model.generation_config.update(top_k=1, num_beams=3, repetition_penalty=2.0, no_repeat_ngram_size=2)
    assert sample_captions(model, *arguments, torch.Generator().manual_seed(0)) == plain


def test_beams_are_those_of_generate_and_stop_at_their_ends():
    model = tiny_model(language="gpt2")
    ends = [33, 233]  # which some beams have
    model.generation_config.update(max_new_tokens=LONGEST, eos_token_id=ends, num_beams=2)
    prefix = model.core.image_prompt(1)[0].tolist()
    images = {"pixel_values": pixels(2)}
    beams = beam_captions(model, prefix, images, 3)
    expected = model.generate(torch.tensor([prefix] * 2), **images, num_beams=3, num_return_sequences=3)
    assert len(beams.token_ids) == 6
    for caption, row, ended in zip(beams.token_ids, expected[:, len(prefix) :].tolist(), beams.ended, strict=True):
        assert row[: len(caption)] == caption
        assert ended == (caption[-1] in ends)
        assert not any(token in ends for token in caption[:-1])
        assert ended or len(caption) == LONGEST
    assert any(beams.ended)

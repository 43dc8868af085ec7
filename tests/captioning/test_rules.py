"""The rules on logits: those of transformers."""

import numpy as np
import pytest
import torch
from transformers import (
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    NoBadWordsLogitsProcessor,
    NoRepeatNGramLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from vlm_caption.captioning.rules import DecodingSettings, change_logits, keep_likely

ENDS = [0, 3]
WRITTEN = [[5, 6, 5, 6, 5], [1, 1, 2, 9, 4], [7, 8, 9, 7, 8]]
SCORES = np.random.default_rng(0).normal(size=(3, 12)).astype(np.float32)


def test_rules_come_in_the_order_of_transformers():
    settings = DecodingSettings(
        eos_token_id=ENDS,
        repetition_penalty=1.3,
        no_repeat_ngram_size=3,
        bad_words_ids=[[2], [7, 8, 11], [5, 10], [0]],
        min_new_tokens=6,
    )
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.3),
            NoRepeatNGramLogitsProcessor(3),
            NoBadWordsLogitsProcessor([[2], [7, 8, 11], [5, 10], [0]], ENDS),
            MinNewTokensLengthLogitsProcessor(0, 6, ENDS),
        ]
    )
    expected = theirs(torch.tensor(WRITTEN), torch.tensor(SCORES)).numpy()
    changed = change_logits(SCORES, WRITTEN, settings)
    assert np.array_equal(changed, expected)
    assert np.isinf(changed).sum() > 6


@pytest.mark.parametrize(
    ("temperature", "top_k", "top_p"), [(0.7, 50, 1.0), (1.0, 4, 1.0), (1.4, 0, 0.6), (0.5, 6, 0.8)]
)
def test_unlikely_tokens_are_left_out_as_in_transformers(temperature, top_k, top_p):
    settings = DecodingSettings(do_sample=True, temperature=temperature, top_k=top_k, top_p=top_p)
    theirs = LogitsProcessorList([TemperatureLogitsWarper(temperature)])
    theirs += [TopKLogitsWarper(top_k)] if top_k else []
    theirs += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    expected = theirs(torch.tensor(WRITTEN), torch.tensor(SCORES)).numpy()
    assert keep_likely(SCORES, settings) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_beams": 0}, "num_beams must be at least 1"),
        ({"temperature": 0.0}, "temperature must be above 0"),
        ({"top_p": 1.5}, "top_p must be above 0"),
        ({"stop": " "}, "visible character"),
        ({"penalty_alpha": 0.6}, "no setting penalty_alpha"),
        ({"num_beams": 2, "num_return_sequences": 3}, "at least 3 beams"),
        ({"num_beams": 2, "do_sample": True}, "samples without beams"),
    ],
)
def test_a_setting_that_cannot_be_is_refused_in_a_sentence(arguments, message):
    with pytest.raises(ValueError, match=message):
        DecodingSettings().updated(arguments)


def test_several_captions_bring_their_beams():
    assert DecodingSettings().updated({"num_return_sequences": 3}).num_beams == 3
    assert DecodingSettings(num_beams=5).updated({"num_return_sequences": 3, "seed": None}).num_beams == 5

"""The reward of a sampled caption, and what it is compared with."""

import pytest
import torch

from vlm_caption.metrics.ngram_scores import score_cider
from vlm_caption.training.reward import CaptionReward, advantages

REFERENCES = [
    ["A dog runs on the grass.", "The dog is running."],
    ["Two men play football.", "Men in red shirts with a ball."],
    ["A red car on a street."],
]


def test_the_reward_is_the_score_of_captions_whose_end_is_a_word():
    reward = CaptionReward(REFERENCES)
    texts = ["A dog runs on the grass.", "A dog runs on the", "Two men."]
    found = reward([0], texts, [True, False, True])
    ended = [
        [f"{text.lower().replace('.', '').replace(',', '')} zzz" for text in references] for references in REFERENCES
    ]
    for column, caption in enumerate(["a dog runs on the grass zzz", "a dog runs on the", "two men zzz"]):
        expected = score_cider([caption, *(texts[0] for texts in ended[1:])], ended)[0]
        assert found[0, column].item() == pytest.approx(expected, abs=1e-6)


def test_a_caption_that_breaks_off_earns_less_than_the_same_words_with_an_end():
    reward = CaptionReward(REFERENCES)
    whole, cut = reward([0], ["a dog runs on the grass."] * 2, [True, False])[0]
    assert whole > cut


def test_a_caption_earns_more_if_it_ends_as_the_references_do():
    stopped, bare = CaptionReward(REFERENCES)(
        [0], ["a dog runs on the grass.", "a dog runs on the grass"], [True] * 2
    )[0]
    assert stopped > bare
    without = [[caption.rstrip(".") for caption in captions] for captions in REFERENCES]
    stopped, bare = CaptionReward(without)([0], ["a dog runs on the grass.", "a dog runs on the grass"], [True] * 2)[0]
    assert bare > stopped


def test_bleu_is_added_with_its_weight():
    texts = ["a dog runs on the grass.", "two men."]
    plain, mixed = (CaptionReward(REFERENCES, bleu=weight)([0], texts, [True, True]) for weight in (0.0, 0.5))
    assert (mixed - plain)[0].tolist() == pytest.approx([0.5, 0.0], abs=1e-3)


@pytest.mark.parametrize("count", [2, 3, 5])
def test_equal_rewards_have_no_advantage_at_all(count):
    assert not advantages(torch.full((4, count), 0.1)).any()


def test_the_baseline_is_the_mean_of_the_others():
    found = advantages(torch.tensor([[1.0, 2.0, 6.0]]))
    assert found.tolist() == [[1 - 4.0, 2 - 3.5, 6 - 1.5]]

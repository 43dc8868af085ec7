"""Batches of like length: every image once an epoch, little padding, and an order that the seed alone settles."""

import itertools

import numpy as np
import pytest
import torch
from tiny_models import pixels, tiny_model, tiny_processor

from vlm_caption.data.collator import CaptionCollator
from vlm_caption.data.sampler import LengthBatchSampler

# The captions of one of Flickr8k's images have 67 ± 11 tokens of SmolLM2 together, and 18 stand before them.
PREFIX = 18
LENGTHS = np.random.default_rng(0).normal(67, 11, 6000).astype(int)


def sampler(batch_size: int = 8, batches_a_step: int = 1, seed: int = 0, count: int = 6000) -> LengthBatchSampler:
    return LengthBatchSampler(count, batch_size, batches_a_step, lambda rows: LENGTHS[rows].tolist(), seed)


def padding(batches: list[list[int]]) -> float:
    widths = [PREFIX + LENGTHS[batch] for batch in batches]
    return 1 - sum(width.sum() for width in widths) / sum(len(width) * width.max() for width in widths)


@pytest.mark.parametrize("batch_size", [8, 64])
def test_less_than_a_twentieth_is_padding(batch_size):
    shuffled = np.random.default_rng(0).permutation(6000)
    assert padding(np.split(shuffled, range(batch_size, 6000, batch_size))) > 0.15
    assert padding(list(sampler(batch_size))) < 0.05


@pytest.mark.parametrize("count", [5, 100, 1003])
def test_every_image_comes_once_and_a_smaller_batch_comes_last(count):
    batches = list(sampler(count=count))
    assert sorted(itertools.chain(*batches)) == list(range(count))
    assert {len(batch) for batch in batches[:-1]} <= {8}
    assert len(batches) == len(sampler(count=count))


def test_epochs_and_seeds_differ_and_each_is_the_same_again():
    batches = sampler()
    first = list(batches)
    assert list(batches) == first
    batches.epoch = 1
    assert list(batches) != first
    assert list(sampler(seed=1)) != first


def test_long_and_short_captions_come_in_turn():
    means = [LENGTHS[batch].mean() for batch in sampler()]
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2


def test_another_random_state_changes_nothing():
    first = list(sampler())
    np.random.seed(1)
    torch.manual_seed(1)
    assert list(sampler()) == first


@pytest.mark.parametrize("batches_a_step", [2, 4])
def test_a_step_has_the_same_images_however_it_is_divided(batches_a_step):
    whole = list(sampler(16, 1, count=1003))
    parts = list(sampler(16 // batches_a_step, batches_a_step, count=1003))
    assert list(itertools.chain(*parts)) == list(itertools.chain(*whole))
    assert list(itertools.chain(*parts[:batches_a_step])) == whole[0]


def test_the_loss_and_gradient_of_an_epoch_are_those_of_one_caption_a_row():
    model = tiny_model("dinov2", "llama", image_tokens="patches", image_grid=2)
    pictures = pixels(7)
    collator = CaptionCollator(
        tiny_processor(model.config), lambda rows: {"pixel_values": pictures[[row["index"] for row in rows]]}
    )
    rows = [{"index": index, "captions": ["x" * length, "yz"]} for index, length in enumerate((3, 9, 1, 7, 2, 8, 4))]

    def gradient(batches: list[list[dict]]) -> tuple[float, torch.Tensor]:
        count = sum(collator.count_tokens(rows))
        model.zero_grad()
        loss = sum(model(**collator(batch), num_items_in_batch=count).loss for batch in batches)
        loss.backward()
        return loss.item(), model.core.multi_modal_projector.linear_1.weight.grad.clone()

    alone = [[{**row, "captions": [caption]}] for row in rows for caption in row["captions"]]
    lengths = collator.count_tokens(rows)
    grouped = LengthBatchSampler(7, 3, 1, lambda window: [lengths[row] for row in window])
    expected_loss, expected = gradient(alone)
    loss, found = gradient([[rows[row] for row in batch] for batch in grouped])
    assert loss == pytest.approx(expected_loss, rel=1e-5)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())

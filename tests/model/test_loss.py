"""The loss against torch's own cross-entropy."""

import pytest
import torch
from torch.nn import functional

from vlm_caption.model.loss import bag_of_words_loss, caption_loss


def draw(rows: int = 150, vocabulary: int = 37) -> tuple[torch.Tensor, torch.Tensor]:
    """More rows than are worked on at once, some without a target."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(rows, vocabulary, generator=generator)
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    targets[::7] = -100
    return logits, targets


@pytest.mark.parametrize("num_items", [None, 1000])
def test_loss_and_gradient_are_those_of_torch(num_items):
    logits, targets = draw()
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = caption_loss(ours, targets, num_items)
    expected = functional.cross_entropy(theirs, targets, reduction="sum") / (num_items or (targets != -100).sum())
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_half_precision_logits_are_reckoned_with_in_float32():
    logits, targets = draw()
    half = logits.bfloat16().requires_grad_()
    whole = half.detach().float().requires_grad_()
    loss = caption_loss(half, targets)
    expected = functional.cross_entropy(whole, targets)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.bfloat16
    torch.testing.assert_close(half.grad.float(), whole.grad, rtol=2**-7, atol=1e-6)


def test_the_gradient_is_scaled_in_float32():
    logits, targets = draw()
    half = logits.bfloat16().requires_grad_()
    caption_loss(half, targets, 1).backward()
    whole, half.grad = half.grad, None
    caption_loss(half, targets, 650).backward()
    assert whole is not None
    assert half.grad is not None
    share = half.grad.double().abs().sum() / whole.double().abs().sum()
    assert abs(share * 650 - 1) < 8e-4  # in bfloat16 a 650th is off by twice that


def test_the_loss_of_no_target_is_nought():
    logits = torch.randn(2, 3, 5, requires_grad=True)
    loss = caption_loss(logits, torch.full((2, 3), -100))
    loss.backward()
    assert loss.item() == 0
    assert logits.grad is not None
    assert not logits.grad.any()


def test_logits_that_need_no_gradient_get_none():
    logits, targets = draw()
    with torch.no_grad():
        assert not caption_loss(logits.requires_grad_(), targets).requires_grad


def test_a_target_may_count_several_times():
    logits, targets = draw()
    weights = torch.arange(len(targets)).fmod(4)
    ours, theirs = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    loss = caption_loss(ours, targets, weights=weights)
    weights = weights * (targets != -100)
    expected = (functional.cross_entropy(theirs, targets, reduction="none") * weights).sum() / weights.sum()
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_the_bag_of_words_loss_is_the_mean_over_all_tokens_of_an_images_captions():
    generator = torch.Generator().manual_seed(0)
    embeds, head = torch.randn(2, 3, 8, generator=generator), torch.nn.Linear(8, 5)
    targets = torch.tensor([[4, 0, 4, 1], [2, 3, -100, -100]])
    scores = head(functional.layer_norm(embeds.mean(dim=1), (8,)))
    rows, tokens = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([4, 0, 4, 1, 2, 3])
    expected = functional.cross_entropy(scores[rows], tokens, reduction="sum") / 12
    torch.testing.assert_close(bag_of_words_loss(embeds, head, targets, 12), expected)


def test_the_bag_of_words_loss_ignores_order():
    embeds, head = torch.randn(1, 3, 8), torch.nn.Linear(8, 5)
    losses = [bag_of_words_loss(embeds, head, torch.tensor([ids]), 3) for ids in ([0, 1, 4], [4, 0, 1])]
    torch.testing.assert_close(*losses)

"""The loss: next-token cross-entropy over the targets that count, in float32 whatever the logits are."""

from typing import Any, cast

import torch

IGNORE_INDEX = -100  # in labels: not a target

_ROWS_AT_ONCE = 64


def caption_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns the mean next-token cross-entropy, in nats, over the targets that are not `IGNORE_INDEX`.

    A row without a target counts for nothing, and a batch without one has a loss of 0, never NaN.

    Args:
        logits: float [..., V].
        targets: int64 [...], aligned with `logits`.
        num_items_in_batch: Divide by this many targets instead of this batch's own, so that the mean stays exact
            over accumulated batches and processes.
        weights: float, in the shape of `targets`: count each target so many times; by default once.

    Returns:
        A scalar, float32. Its gradient cannot be differentiated again.
    """
    counts = (targets != IGNORE_INDEX).float().to(logits.device)
    if weights is not None:
        counts = counts * weights.to(counts)
    total = (target_nll(logits, targets) * counts).sum()
    if num_items_in_batch is None:
        num_items_in_batch = counts.sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp_min(1)


def target_nll(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Returns the negative log-probability of each target, in nats, float32 [...]; 0 for `IGNORE_INDEX`.

    Args:
        logits: float [..., V].
        targets: int64 [...], aligned with `logits`.

    Returns:
        Its gradient cannot be differentiated again.
    """
    flat = targets.reshape(-1).to(logits.device)
    nll: torch.Tensor = _CrossEntropy.apply(logits.reshape(-1, logits.shape[-1]), flat)
    return nll.masked_fill(flat == IGNORE_INDEX, 0.0).view(targets.shape)


def training_loss(
    logits: torch.Tensor,
    labels: Any,
    vocab_size: int,
    num_items_in_batch: torch.Tensor | int | None = None,
    shift_labels: torch.Tensor | None = None,
    target_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Returns [`caption_loss`], called in the way that models of transformers call their `loss_function`."""
    return caption_loss(logits, cast(torch.Tensor, shift_labels), num_items_in_batch, target_weights)


def bag_of_words_loss(
    image_embeds: torch.Tensor, head: torch.nn.Module, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int
) -> torch.Tensor:
    """Returns the mean cross-entropy, in nats, of the captions' tokens as the image tokens alone predict them.

    The average of an image's tokens predicts one distribution for all tokens of its captions, whatever their order.
    Its gradient reaches the vision tower without passing through the language model's blocks, which at first ignore
    the image. Zhao et al. 2017 (arXiv:1703.10960) use this loss for a latent variable.

    Args:
        image_embeds: float [I, N, D_text], the projected tokens of each image.
        head: The language model's output embeddings, from float [I, D_text] to float [I, V].
        targets: int64 [I, M], the tokens of each image's captions; `IGNORE_INDEX` elsewhere.
        num_items_in_batch: Divide by this many targets.

    Returns:
        A scalar, float32.
    """
    average = image_embeds.mean(dim=1)
    # Heads expect the scale that the language model's last norm gives.
    scores = torch.log_softmax(head(torch.nn.functional.layer_norm(average, average.shape[-1:])), -1, torch.float32)
    nll = -scores.gather(1, targets.clamp_min(0)).masked_fill(targets == IGNORE_INDEX, 0.0)
    return nll.sum() / torch.as_tensor(num_items_in_batch, device=nll.device).clamp_min(1)


class _CrossEntropy(torch.autograd.Function):
    """The targets' cross-entropies; a few rows at a time are float32.

    The gradient, softmax less one-hot, is made in the forward pass, in the logits' dtype, as in Liger-Kernel (Hsu et
    al. 2024, arXiv:2410.10989): torch's own would hold the logits, their log-softmax and its gradient in float32, all
    as large as a vocabulary times the targets, and on a CPU takes twice the time.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """logits float [M, V], targets int64 [M] → float32 [M]."""
        losses = torch.empty(len(logits), device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            wanted = targets[rows, None].clamp_min(0)  # the caller leaves out what is ignored
            scores = torch.log_softmax(logits[rows], -1, dtype=torch.float32)
            losses[rows] = -scores.gather(1, wanted)[:, 0]
            if gradient is not None:
                probabilities = scores.exp_()
                probabilities.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
                gradient[rows] = probabilities
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None]:
        """The losses' gradient, float32 [M] → that of the logits, float [M, V]."""
        (gradient,) = ctx.saved_tensors
        scaled = torch.empty_like(gradient)
        for start in range(0, len(gradient), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            scaled[rows] = gradient[rows] * outputs[0][rows, None]  # in float32
        return scaled, None


__all__ = ["IGNORE_INDEX", "bag_of_words_loss", "caption_loss", "target_nll", "training_loss"]

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
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).to(logits.device)
    counts = (targets != IGNORE_INDEX).float()
    if weights is not None:
        counts = counts * weights.reshape(-1).to(counts)
    total: torch.Tensor = _SummedCrossEntropy.apply(logits, targets, counts)
    if num_items_in_batch is None:
        num_items_in_batch = counts.sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp_min(1)


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


class _SummedCrossEntropy(torch.autograd.Function):
    """The sum of the targets' cross-entropies; a few rows at a time are float32.

    The gradient, softmax less one-hot, is made in the forward pass, in the logits' dtype, as in Liger-Kernel (Hsu et
    al. 2024, arXiv:2410.10989): torch's own would hold the logits, their log-softmax and its gradient in float32, all
    as large as a vocabulary times the targets, and on a CPU takes twice the time.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, targets: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
        """logits float [M, V], targets int64 [M], how often each counts float32 [M] → a float32 scalar."""
        total = torch.zeros((), device=logits.device)
        gradient = torch.empty_like(logits) if ctx.needs_input_grad[0] else None
        for start in range(0, len(logits), _ROWS_AT_ONCE):
            rows = slice(start, start + _ROWS_AT_ONCE)
            wanted = targets[rows, None].clamp_min(0)  # what is ignored counts 0 times
            scores = torch.log_softmax(logits[rows], -1, dtype=torch.float32)
            total -= (scores.gather(1, wanted) * counts[rows, None]).sum()
            if gradient is not None:
                probabilities = scores.exp_()
                probabilities.scatter_add_(1, wanted, torch.full_like(wanted, -1, dtype=torch.float32))
                gradient[rows] = probabilities * counts[rows, None]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *outputs: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        """The scalar's gradient → that of the logits, float [M, V]."""
        (gradient,) = ctx.saved_tensors
        return gradient * outputs[0], None, None  # the scalar stays float32


__all__ = ["IGNORE_INDEX", "caption_loss", "training_loss"]

"""The loss: next-token cross-entropy over the targets that count, in float32 whatever the logits are."""

from typing import Any

import torch

IGNORE_INDEX = -100

_ROWS_AT_ONCE = 64


def caption_loss(
    logits: torch.Tensor,
    targets: torch.Tensor,
    num_items_in_batch: torch.Tensor | int | None = None,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Mean next-token cross-entropy, in nats, over the targets that are not `IGNORE_INDEX`.

    A row, or a whole batch, without a target weighs nothing: the loss of nothing is 0, never NaN.

    Args:
        logits: float [..., V].
        targets: int64 [...], aligned with `logits`.
        num_items_in_batch: divide by this many targets instead of this batch's own, so that the mean stays exact
            over accumulated batches and processes (transformers' Trainer passes it).
        weights: float, as `targets`: count each target so many times; by default once.

    Returns:
        float32, a scalar. Its gradient cannot be differentiated once more.
    """
    logits, targets = logits.reshape(-1, logits.shape[-1]), targets.reshape(-1).to(logits.device)
    counts = (targets != IGNORE_INDEX).float()
    if weights is not None:
        counts = counts * weights.reshape(-1).to(counts)
    total: torch.Tensor = _SummedCrossEntropy.apply(logits, targets, counts)
    if num_items_in_batch is None:
        num_items_in_batch = counts.sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp_min(1)


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

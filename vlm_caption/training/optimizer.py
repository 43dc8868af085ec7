"""The optimizer and the learning rate schedule: AdamW, linear warm-up and cosine decay."""

import logging
import math
import re
from typing import Any

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from ..model.freezing import module_of

logger = logging.getLogger(__name__)

# Parameters of these names, and those of every `nn.LayerNorm`, do not decay: the rule of transformers' Trainer.
_NORM_OR_BIAS = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")


def create_optimizer(model: nn.Module, rates: dict[str, tuple[float, float]]) -> torch.optim.AdamW:
    """Creates an optimizer of all parameters that require a gradient. Norms and biases do not decay.

    Args:
        model: The captioner, its parts frozen or not as they are to be trained.
        rates: The learning rate and the weight decay of each module: `"vision"`, `"projector"` and `"language"`.
    """
    layer_norms = {f"{name}." for name, module in model.named_modules() if isinstance(module, nn.LayerNorm)}
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decays = not _NORM_OR_BIAS.search(name.lower()) and f"{name.rpartition('.')[0]}." not in layer_norms
            module = module_of(name)
            rate, decay = rates[module]
            group = {"params": [], "lr": rate, "weight_decay": decay if decays else 0.0}
            groups.setdefault((module, decays), group)["params"].append(parameter)
    # The log shows the first group's learning rate: the projector's, where it is trained.
    ordered = sorted(groups.items(), key=lambda item: item[0][0] != "projector")
    for module in dict.fromkeys(module for (module, _), _ in ordered):
        rate, decay = rates[module]
        logger.info("%s: learning rate %g, weight decay %g (norms and biases: 0)", module, rate, decay)
    return torch.optim.AdamW([group for _, group in ordered], betas=(0.9, 0.95), eps=1e-8, fused=True)


def create_schedule(
    optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int, is_first: bool = True
) -> torch.optim.lr_scheduler.LambdaLR:
    """Creates the schedule: a linear rise over `warmup_steps`, then half a cosine down to 0 at the end.

    Args:
        optimizer: The optimizer.
        warmup_steps: The length of the warm-up. Behind another schedule, it is at most a tenth of the steps, and at
            least one.
        steps: The length of the schedule.
        is_first: Whether no schedule came before. The first one begins at 0, as that of transformers does. A later one
            begins above 0, where the one before would have gone to: a warm restart (Loshchilov and Hutter 2017,
            "SGDR: Stochastic Gradient Descent with Warm Restarts").
    """
    if is_first:
        return get_cosine_schedule_with_warmup(optimizer, warmup_steps, steps)
    warmup = min(warmup_steps, max(1, steps // 10))

    def factor(step: int) -> float:
        if step < warmup:
            return (step + 1) / (warmup + 1)
        return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(1, steps - warmup)))

    return torch.optim.lr_scheduler.LambdaLR(optimizer, factor)


def move_schedule(optimizer: torch.optim.Optimizer, schedule: torch.optim.lr_scheduler.LambdaLR, step: int) -> None:
    """Moves a schedule to one of its steps, and sets the optimizer's learning rates to those of that step.

    Args:
        optimizer: The optimizer, perhaps with the learning rates of another schedule.
        schedule: Its schedule.
        step: The number of steps of the schedule that have been made.
    """
    for group, base, factor in zip(optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas, strict=True):
        group["lr"] = base * factor(step)
    schedule.load_state_dict(
        {**schedule.state_dict(), "last_epoch": step, "_last_lr": [group["lr"] for group in optimizer.param_groups]}
    )

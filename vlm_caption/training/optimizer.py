"""The optimizer and the learning rate schedule: AdamW, linear warm-up and cosine decay."""

import logging
import re
from typing import Any

import torch
from torch import nn
from transformers import get_cosine_schedule_with_warmup

from ..config.sections import TrainingSection
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
    for (module, _), group in ordered:
        logger.info(
            "%s: %s parameters in %d tensors, learning rate %g, weight decay %g",
            module,
            f"{sum(parameter.numel() for parameter in group['params']):,}",
            len(group["params"]),
            group["lr"],
            group["weight_decay"],
        )
    return torch.optim.AdamW([group for _, group in ordered], betas=(0.9, 0.95), eps=1e-8, fused=True)


def create_schedule(
    optimizer: torch.optim.Optimizer, settings: TrainingSection, max_steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    """Creates the schedule: a linear rise over `warmup_steps`, then half a cosine down to 0 at `max_steps`."""
    return get_cosine_schedule_with_warmup(optimizer, settings.warmup_steps, max_steps)

"""What fits the machine: the dtype of frozen weights, attention kernels, its cores, and how a run was launched."""

import logging
from collections.abc import Collection
from pathlib import Path

import torch
from torch import nn
from transformers.activations import NewGELUActivation

from ..model.adapters import is_adapter
from ..model.freezing import TOWERS, holds_trained_weights
from .captioner import CaptionerForConditionalGeneration

logger = logging.getLogger(__name__)


def hold_frozen(model: CaptionerForConditionalGeneration, precision: str, but: Collection[str] = ()) -> None:
    """Puts frozen towers into bfloat16 where `use_bf16(precision)`; what is trained stays in float32.

    What is frozen needs no precision beyond its use. A tower any of whose own weights are trained, or were, is left
    as it is: they would be rounded, and layers of two dtypes do not go together. Adapters stay in float32 beside it.

    Args:
        model: with its parts frozen as they are to be trained.
        precision: as of `use_bf16`.
        but: modules (`"vision"`, `"language"`) that are frozen now and trained in a later stage.
    """
    if not use_bf16(precision):
        return
    for module, name in TOWERS.items():
        tower = getattr(model.core, name)
        if tower is not None and module not in but and not holds_trained_weights(model.core, name):
            # What is not saved stays as it is: rotary frequencies would turn late positions by wrong angles.
            for key, tensor in tower.state_dict(keep_vars=True).items():
                if tensor.is_floating_point() and not is_adapter(key):
                    tensor.data = tensor.data.to(torch.bfloat16)


def choose_kernels(model: CaptionerForConditionalGeneration, compiled: bool) -> None:
    """Picks what is fastest over rows as short as an image's captions are.

    Args:
        model: on the device that it is trained on.
        compiled: whether the language model is compiled.
    """
    if compiled or model.device.type == "cpu":
        # The library's fused attention is slower here: by a seventh of a step of GPT-2 on a CPU, mostly backward.
        model.core.language_model.set_attn_implementation("eager")
    for module in list(model.core.language_model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):  # GPT-2's and Phi's: the same function in eight operations
                setattr(module, name, nn.GELU(approximate="tanh"))
    if compiled:
        model.core.language_model.base_model.compile(dynamic=True)


def use_bf16(precision: str) -> bool:
    """Whether to hold frozen weights in bfloat16. `"auto"`: where the machine multiplies it natively."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    # The flag first: builds of torch for other processors lack the operation.
    return "bf16" in _cpu_flags() and torch.ops.mkldnn._is_mkldnn_bf16_supported()


def _cpu_flags() -> str:
    # oneDNN also says yes to processors that only emulate bfloat16, slower than float32.
    cpuinfo = Path("/proc/cpuinfo")
    return cpuinfo.read_text() if cpuinfo.exists() else ""

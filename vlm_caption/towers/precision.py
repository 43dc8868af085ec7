"""Fits a model to the machine: the dtype of frozen weights, and the attention kernels."""

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
    """Converts frozen towers to bfloat16 if `use_bf16(precision)`. Trained weights stay in float32.

    Frozen weights need no more precision than their use does. A tower stays as it is if any of its own weights are
    trained or were trained: bfloat16 would round them, and layers of two dtypes do not go together. Adapters beside
    frozen weights stay in float32.

    Args:
        model: The captioner, with its modules frozen as they are to be trained.
        precision: See `use_bf16`.
        but: Modules (`"vision"`, `"language"`) to leave as they are, because a later stage trains them.
    """
    if not use_bf16(precision):
        return
    for module, name in TOWERS.items():
        tower = getattr(model.core, name)
        if tower is not None and module not in but and not holds_trained_weights(model.core, name):
            # Buffers that are not saved stay in float32: rounded rotary frequencies would shift late positions.
            for key, tensor in tower.state_dict(keep_vars=True).items():
                if tensor.is_floating_point() and not is_adapter(key):
                    tensor.data = tensor.data.to(torch.bfloat16)


def choose_kernels(model: CaptionerForConditionalGeneration, compiled: bool) -> None:
    """Chooses the kernels that are fastest for rows as short as image captions.

    Args:
        model: The captioner, on the device that it is trained on.
        compiled: Whether to compile the language model.
    """
    if compiled or model.device.type == "cpu":
        # Fused attention makes a training step of GPT-2 on a CPU slower by a seventh, mostly in the backward pass.
        model.core.language_model.set_attn_implementation("eager")
    for module in list(model.core.language_model.modules()):
        for name, child in module.named_children():
            if isinstance(child, NewGELUActivation):  # GPT-2's and Phi's: the same function in eight operations
                setattr(module, name, nn.GELU(approximate="tanh"))
    if compiled:
        model.core.language_model.base_model.compile(dynamic=True)


def use_bf16(precision: str) -> bool:
    """Returns whether to hold frozen weights in bfloat16. With `"auto"`, if the machine multiplies it faster."""
    if precision != "auto":
        return precision == "bf16"
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return multiplies_bf16_faster(_cpuinfo()) and torch.backends.mkldnn.is_available()


def multiplies_bf16_faster(cpuinfo: str) -> bool:
    """Returns whether a processor multiplies matrices faster in bfloat16 than in float32.

    Intel's and Arm's processors do so with AMX and with Arm's BF16, and AMD's with AVX-512 BF16. Intel's run AVX-512
    BF16 at half the rate of AMD's, which makes it slower than float32, and virtual machines may have it without AMX.
    Other processors only emulate bfloat16, which oneDNN does without a warning.

    Args:
        cpuinfo: The text of Linux's /proc/cpuinfo.
    """
    fields: dict[str, str] = {}
    for line in cpuinfo.splitlines():
        name, _, value = line.partition(":")
        fields.setdefault(name.strip(), value)
    flags = {*fields.get("flags", "").split(), *fields.get("Features", "").split()}  # x86's and Arm's
    is_amd = fields.get("vendor_id", "").strip() == "AuthenticAMD"
    return bool(flags & {"amx_bf16", "bf16"}) or (is_amd and "avx512_bf16" in flags)


def _cpuinfo() -> str:
    path = Path("/proc/cpuinfo")
    return path.read_text() if path.exists() else ""

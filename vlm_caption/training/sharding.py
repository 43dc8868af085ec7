"""Fully sharded data parallelism (FSDP2): each process holds a share of every weight, and gathers a layer to use it.

`accelerate launch --use_fsdp --fsdp_version 2` asks for it. PyTorch's `fully_shard` does the sharding, and accelerate
the rest: accelerate 1.15 itself shards on GPUs only, and on CPUs would train a whole copy of the model in each process
without saying so. `fully_shard` works on both, so that the tests need no GPU.
"""

import contextlib
import logging
import os
from collections.abc import Generator

import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

from ..config.run_config import RunConfig
from ..core.errors import ConfigError
from ..core.threads import count_processes
from ..model.blocks import find_blocks
from ..towers.captioner import CaptionerForConditionalGeneration

logger = logging.getLogger(__name__)

_USE_FSDP = "ACCELERATE_USE_FSDP"


def is_asked_for() -> bool:
    """Returns whether `accelerate launch` was told to use FSDP."""
    return os.environ.get(_USE_FSDP, "false").lower() == "true"


def check_sharding(config: RunConfig) -> None:
    """Refuses what goes together with FSDP elsewhere, and not here.

    Raises:
        ConfigError: FSDP was asked for in its first version, for one process, with weights offloaded to the CPU, for
            several stages, for a compiled model, or for averaged weights.
    """
    if not is_asked_for():
        return
    told = "accelerate launch was told to use FSDP"
    if os.environ.get("FSDP_VERSION", "1") != "2":
        raise ConfigError(f"{told} in its first version: add --fsdp_version 2 (docs/distributed.md).")
    if count_processes() == 1:
        raise ConfigError(f"{told} and started one process: set --num_processes to 2 or more (docs/distributed.md).")
    if os.environ.get("FSDP_OFFLOAD_PARAMS", "false").lower() == "true":
        raise ConfigError(f"{told} and to offload weights, which training does not do: set fsdp_offload_params false.")
    if config.stages:
        raise ConfigError(f"{told}, which trains runs of one stage: leave out stages, or train without FSDP.")
    if config.training.compile:
        raise ConfigError(f"{told}, which is not for compiled models: set training.compile to false.")
    if config.training.ema_decay is not None:
        raise ConfigError(f"{told}, which does not average weights: set training.ema_decay to null.")


@contextlib.contextmanager
def hiding_fsdp() -> Generator[bool]:
    """Yields whether FSDP was asked for, and hides that from accelerate and transformers meanwhile.

    accelerate would shard the model its own way, and transformers would load weights in the first process alone.
    """
    asked = is_asked_for()
    before = os.environ.pop(_USE_FSDP, None)
    try:
        yield asked
    finally:
        if before is not None:
            os.environ[_USE_FSDP] = before


def shard(model: CaptionerForConditionalGeneration, device: torch.device) -> None:
    """Spreads a model's weights over all processes, in place.

    Each block of the two towers is gathered by itself. What remains (the embedding table, the head, the projector) is
    gathered together.

    Args:
        model: The whole model, the same in every process. Weights that are not on the device yet are moved there block
            by block, so that it never holds all of them.
        device: This process's.
    """
    mesh = init_device_mesh(device.type, (torch.distributed.get_world_size(),))
    for tower in (model.core.vision_tower, model.core.language_model):
        if tower is not None:
            with contextlib.suppress(ValueError):  # a tower without a list of blocks is gathered as a whole
                for block in find_blocks(tower)[1]:
                    fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    # It reads weights of the last group before it calls the model.
    register_fsdp_forward_method(model, "generate")
    own = sum(parameter.to_local().numel() for parameter in model.parameters() if isinstance(parameter, DTensor))
    total = sum(parameter.numel() for parameter in model.parameters())
    logger.info("FSDP: this process holds %s of the %s parameters", f"{own:,}", f"{total:,}")


def reshard(model: torch.nn.Module) -> None:
    """Lets go of weights that a forward pass without a backward one has gathered; does nothing if none are sharded."""
    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def is_sharded(model: torch.nn.Module) -> bool:
    """Returns whether `shard` has spread a model's weights."""
    return isinstance(model, FSDPModule)


def gather_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a whole tensor. All processes must call this for a sharded one; another is returned as it is."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def scatter_tensor(tensor: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Returns a whole tensor sharded as `like` is; unchanged if that is not sharded."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def gather_weights(model: torch.nn.Module, keep: bool) -> dict[str, torch.Tensor] | None:
    """Returns all weights of a sharded model on the CPU, for saving.

    Args:
        model: The model. All processes must call this.
        keep: Whether this process wants the result; the others get None and hold one weight at a time.
    """
    state, parameters = model.state_dict(), dict(model.named_parameters(remove_duplicate=False))
    gathered: dict[int, torch.Tensor | None] = {}  # tied weights have one parameter, and are saved once
    for name, tensor in state.items():
        key = id(parameters.get(name, tensor))
        if key not in gathered:
            whole = gather_tensor(tensor)
            gathered[key] = whole.cpu() if keep else None
        state[name] = gathered[key]
    return state if keep else None

"""Checks how a run was launched, and gives it all cores of the machine."""

import logging
import os

import torch

from ..core.errors import ConfigError

logger = logging.getLogger(__name__)


def check_launcher() -> None:
    """Refuses what `accelerate launch` was asked for and training does not do, and tells what accelerate left out.

    Its mixed precision is set to "no" in the environment, before Trainer reads it there.

    Raises:
        ConfigError: if FSDP, DeepSpeed or Megatron-LM was chosen.
    """
    for name in ("FSDP", "DeepSpeed", "Megatron_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            raise ConfigError(
                f"accelerate launch was told to use {name}, which training does not support: every process holds the "
                "whole model; choose distributed_type MULTI_GPU (docs/distributed.md)."
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        logger.warning(
            "accelerate launch was told mixed_precision %s, which is not used: training.precision says it", precision
        )
        # Trainer would take it. It stays set, for it also tells that accelerate started the run.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    # accelerate names a meeting point where several processes were asked for, and may yet start just one.
    alone = not os.environ.keys() & {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"}
    if alone and {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys():
        logger.warning(
            "accelerate launch started one process: where several were asked for on a CPU, use "
            "--config_file configs/accelerate/multi_cpu.yaml or torchrun (docs/distributed.md)"
        )


def use_all_cores() -> None:
    """Undoes what `accelerate launch` does to a single process on a CPU: unless told `--cpu`, one thread."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) == 1
    if launched and not torch.accelerator.is_available() and torch.get_num_threads() == 1:
        torch.set_num_threads(os.cpu_count() or 1)

"""How a run was launched: what `accelerate launch` may ask for, processes and devices, and threads."""

import json
import logging
import os
from datetime import timedelta
from pathlib import Path

import torch
from accelerate import Accelerator, PartialState
from accelerate.tracking import get_available_trackers
from accelerate.utils import DistributedDataParallelKwargs, LoggerType

from ..config.sections import TrainingSection
from ..core.errors import ConfigError
from ..core.threads import count_cores, count_processes
from ..model.freezing import TOWERS

logger = logging.getLogger(__name__)

_LONGEST_WAIT = timedelta(hours=24)  # the other processes wait while one computes image features


def check_launcher() -> None:
    """Refuses what `accelerate launch` was asked for and training does not do, and says what accelerate left out.

    Raises:
        ConfigError: DeepSpeed or Megatron-LM was chosen.
    """
    for name in ("DeepSpeed", "Megatron_LM"):
        if os.environ.get(f"ACCELERATE_USE_{name.upper()}", "false").lower() == "true":
            raise ConfigError(
                f"accelerate launch was told to use {name}, which training does not support: choose distributed_type "
                "MULTI_GPU, or FSDP in version 2 (docs/distributed.md)."
            )
    precision = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    if precision != "no":
        logger.warning(
            "accelerate launch was told mixed_precision %s, which is not used: training.precision says it", precision
        )
        # It stays set, for it also tells that accelerate started the run.
        os.environ["ACCELERATE_MIXED_PRECISION"] = "no"
    # accelerate names a meeting point where several processes were asked for, and may yet start just one.
    alone = not os.environ.keys() & {"WORLD_SIZE", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE"}
    if alone and {"ACCELERATE_MIXED_PRECISION", "MASTER_PORT"} <= os.environ.keys():
        logger.warning(
            "accelerate launch started one process: where several were asked for on a CPU, use "
            "--config_file configs/accelerate/multi_cpu.yaml or torchrun (docs/distributed.md)"
        )


def check_tracker(reporter: str) -> None:
    """Checks that what gets the log beside `metrics.jsonl` can be used.

    Raises:
        ConfigError: `reporter` is not known, or its package is not installed.
    """
    if reporter == "none":
        return
    known = sorted(set(LoggerType.list()) - {"all"})
    if reporter not in known:
        raise ConfigError(f"training.report_to must be none or one of {', '.join(known)}, and {reporter!r} is not.")
    if reporter not in map(str, get_available_trackers()):
        raise ConfigError(
            f"training.report_to {reporter} needs a package that is not installed: pip install "
            f"{reporter.replace('_', '-')}, or choose none."
        )


def join_processes() -> PartialState:
    """Joins the processes that were started together, and returns this one's state: its device and its number."""
    state = PartialState(cpu=not torch.accelerator.is_available(), timeout=_LONGEST_WAIT)
    if state.num_processes == 1 and torch.cuda.device_count() > 1:
        logger.warning(
            "Training on one of %d GPUs: for all, start it with torchrun or accelerate", torch.cuda.device_count()
        )
    return state


def open_accelerator(settings: TrainingSection) -> Accelerator:
    """Creates what prepares a stage's model and data for the processes, and opens its tracker, if it has one."""
    reporter, output_dir = settings.report_to, Path(settings.output_dir)
    trained_towers = {settings.module(module).policy for module in TOWERS} & {"full", "last_n"}
    accelerator = Accelerator(
        # Frozen towers are held in bfloat16; accelerate's mixed precision would also convert all logits to float32.
        mixed_precision="no",
        cpu=not torch.accelerator.is_available(),
        log_with=None if reporter == "none" else reporter,
        project_dir=output_dir,
        # A tower may have weights that no image token comes from, such as a pooler's.
        kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=bool(trained_towers))],
    )
    if reporter != "none":
        # TensorBoard would make a second run of the settings.
        config = None if reporter == "tensorboard" else vars(settings)
        names = {"wandb": {"name": output_dir.name}, "trackio": {"name": output_dir.name}}
        accelerator.init_trackers("vlm-caption", config=config, init_kwargs=names)
    return accelerator


def use_all_cores() -> None:
    """Undoes what `accelerate launch` does to a single process on a CPU: without `--cpu` it gets one thread."""
    launched = "ACCELERATE_MIXED_PRECISION" in os.environ and count_processes() == 1
    if launched and not torch.accelerator.is_available() and torch.get_num_threads() == 1:
        torch.set_num_threads(count_cores())


def keep_threads(recorded: Path) -> None:
    """Gives a resumed run on a CPU as many threads as it began with: another number changes the last bits of sums.

    Args:
        recorded: The run's `run_data.json`. It is checked elsewhere, and may be missing.
    """
    try:
        threads = int(json.loads(recorded.read_text(encoding="utf-8"))["threads"])
    except (OSError, ValueError, TypeError, KeyError):  # a new run, or one of an earlier version
        return
    now = torch.get_num_threads()
    if threads == now or torch.accelerator.is_available():
        return
    if threads > count_cores():
        logger.warning(
            "This run began with %d threads, more than there are cores: with %d, its weights will differ in "
            "the last bits from those of a run that was never stopped",
            threads,
            now,
        )
        return
    torch.set_num_threads(threads)
    logger.info("Computing with %d threads, as this run began with, instead of %d", threads, now)

"""Starts Ray on this machine, or joins a cluster."""

import logging
import os
import sys
from typing import Any

from ..core.console import first_line_of
from ..core.errors import ConfigError
from ..core.extras import require
from ..core.threads import count_cores

# In bytes. Names of pictures and captions pass through it, no pixels. Ray takes a third of the memory otherwise.
OBJECT_STORE = 256 << 20


def open_ray() -> bool:
    """Joins the cluster that RAY_ADDRESS names or that runs on this machine, or else starts Ray on this machine.

    Nothing is reported to the makers of Ray, and no dashboard is started.

    Returns:
        Whether this call has joined or started it, so that the caller shuts it down.

    Raises:
        MissingPackageError: Ray is not installed.
        ConfigError: No cluster answers at RAY_ADDRESS.
        RuntimeError: Ray does not start.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # it prints about restarts of actors
    require("ray", "Captioning with Ray")
    import ray.data  # it sets up its logging

    logging.getLogger("ray.data").setLevel(logging.ERROR)
    if ray.is_initialized():
        return False
    try:
        _init(address="auto")
    except ConnectionError as error:
        if address := os.environ.get("RAY_ADDRESS"):
            raise ConfigError(f"RAY_ADDRESS: no cluster of Ray answers at {address}: correct or unset it.") from error
        _start()
    return True


def _start() -> None:
    """Starts Ray on this machine, for as many cores as this process may use."""
    try:
        _init(address="local", num_cpus=count_cores(), object_store_memory=OBJECT_STORE, include_dashboard=False)
    except Exception as error:  # it raises plain ones
        raise RuntimeError(f"Ray does not start on this machine: {first_line_of(error)}") from error


def _init(**settings: Any) -> None:
    """Calls `ray.init`, which says on stderr that the variable above is set, and what its processes logged."""
    import ray

    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        ray.init(logging_level=logging.CRITICAL, log_to_driver=False, **settings)
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def count_actors(wanted: int | None, threads: int, gpus: int) -> int:
    """Returns the number of actors.

    Args:
        wanted: The number that was asked for; with None, as many as there is room for.
        threads: The cores that each needs.
        gpus: The GPUs that each needs.

    Raises:
        ConfigError: There is no room for so many.
    """
    import ray

    there = ray.cluster_resources()
    most = int(there.get("CPU", 0)) // threads
    if gpus:
        most = min(most, int(there.get("GPU", 0)) // gpus)
    count = most if wanted is None else wanted
    if not 1 <= count <= most:
        needs = f"{threads} core{'s' if threads > 1 else ''}{f' and {gpus} GPU' if gpus else ''}"
        raise ConfigError(
            f"--actors {max(count, 1)}: each needs {needs}, and Ray has room for {most}: take fewer, or a lower "
            "--actor-threads."
        )
    return count

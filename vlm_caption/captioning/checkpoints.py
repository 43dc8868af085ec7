"""Finds checkpoints in folders and on the Hugging Face Hub, without loading them."""

import json
import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.console import first_line_of, quiet_transformers
from ..core.errors import CheckpointError, ConfigError
from ..core.hub_ids import is_hub_id
from ..core.shipped import shipped

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

DEFAULT_CHECKPOINT = shipped("checkpoints/embedded")


def find_checkpoint(checkpoint: str | os.PathLike) -> Path:
    """Returns the local folder of a checkpoint, and downloads it if `checkpoint` is a Hub id.

    Args:
        checkpoint: A folder or a Hub id.

    Raises:
        CheckpointError: There is no such checkpoint, or it belongs to another model.
    """
    name = os.fspath(checkpoint)
    directory = Path(name).expanduser()
    if not directory.is_dir():
        directory = _fetch_checkpoint(name)
    config_file = directory / "config.json"
    try:
        model_type = json.loads(config_file.read_text(encoding="utf-8"))["model_type"]
    except FileNotFoundError as error:
        raise CheckpointError(f"The folder {name!r} is no checkpoint: it holds no config.json.") from error
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"The checkpoint {name!r} has a damaged config.json ({first_line_of(error)})."
        ) from error
    from ..towers.configuration import CaptionerConfig

    if model_type != CaptionerConfig.model_type:
        raise CheckpointError(f"The checkpoint {name!r} is of a {model_type!r} model, not of a captioner.")
    return directory


def find_device(name: str | None = None) -> "torch.device":
    """Returns the device of that name, such as "cuda:1"; by default CUDA, MPS or the CPU, the first that is there.

    Raises:
        ConfigError: There is no such device.
    """
    import torch

    if name is None:
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()
    # Torch raises an AssertionError where it was built without CUDA.
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ConfigError(f"The device {name!r} cannot be used: {first_line_of(error)}") from error
    return device


def _fetch_checkpoint(name: str) -> Path:
    if not is_hub_id(name):
        raise CheckpointError(
            f"There is no checkpoint {name!r}: give the folder of one, or a Hub id such as 'org/name'."
        )
    logger.info("Fetching the checkpoint %s from the Hugging Face Hub", name)
    import huggingface_hub

    try:
        with quiet_transformers():
            return Path(huggingface_hub.snapshot_download(name, ignore_patterns=["*.bin", "*.msgpack", "*.h5"]))
    except Exception as error:  # the Hub client lets through the errors of its HTTP library, which differs by version
        raise CheckpointError(
            f"There is no folder {name!r}, and fetching it from the Hugging Face Hub failed ({first_line_of(error)}): "
            "check the name and the network."
        ) from error

"""Loads the captioner that a command names, and says on the way what takes long."""

from typing import TYPE_CHECKING

from ..core.console import loading
from ..core.extras import require
from ..runtime.files import is_export

if TYPE_CHECKING:
    import torch

    from .. import runtime
    from ..captioning.captioner import Captioner


def load_captioner(
    checkpoint: str, device: str | None = None, dtype: str | None = None
) -> "Captioner | runtime.Captioner":
    """Loads a captioner of torch, or one of the runtime if the folder is an export.

    Args:
        checkpoint: A folder or a Hub id.
        device: See `Captioner.from_pretrained`; of no meaning for an export.
        dtype: The name of the dtype of its weights, as for `named_dtype`; of no meaning for an export.

    Raises:
        BackboneError, ConfigError, OSError: See `Captioner.from_pretrained`.
        MissingPackageError: torch or onnxruntime is not installed.
    """
    if is_export(checkpoint):
        require("onnxruntime", "An exported captioner")
        from ..runtime.captioner import Captioner as Exported

        with loading(f"the export {checkpoint}"):
            return Exported.from_pretrained(checkpoint)
    with loading("PyTorch and transformers"):
        chosen = named_dtype(dtype)
        from ..captioning.captioner import Captioner

    with loading(f"the checkpoint {checkpoint}"):
        return Captioner.from_pretrained(checkpoint, device, chosen)


def load_for_datasets(checkpoint: str) -> "Captioner":
    """Loads a captioner of torch for work on datasets, whose own progress bars are turned off.

    Args:
        checkpoint: A folder or a Hub id.

    Raises:
        BackboneError, OSError: See `Captioner.from_pretrained`.
    """
    with loading("PyTorch and transformers"):
        from datasets import disable_progress_bars

        from ..captioning.captioner import Captioner
    disable_progress_bars()  # one for each selection of rows
    with loading(f"the checkpoint {checkpoint}"):
        return Captioner.from_pretrained(checkpoint)


def named_dtype(name: str | None) -> "torch.dtype | None":
    """Returns the dtype of a name such as "bfloat16"; None for None.

    Raises:
        MissingPackageError: torch is not installed.
    """
    torch = require("torch", "A checkpoint that is not exported")
    return None if name is None else getattr(torch, name)

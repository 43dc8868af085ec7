"""The file of confidences beside a checkpoint's weights, which travels with these weights and with no others."""

import logging
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from ..core.files import CONFIDENCE_NAME, is_file
from ..core.untrusted import load_json

if TYPE_CHECKING:
    from .captioner import CaptionerPreTrainedModel

logger = logging.getLogger(__name__)


def carry_confidence(model: "CaptionerPreTrainedModel", folder: Path) -> None:
    """Copies the confidences of the checkpoint that a model was loaded from to the folder that it is saved to.

    They are of certain weights: those of other weights are not copied, and are removed from the folder.

    Args:
        model: The model.
        folder: The folder, which exists.
    """
    target = folder / CONFIDENCE_NAME
    source = Path(str(model.name_or_path)) / CONFIDENCE_NAME if model.name_or_path else target
    if not (is_file(source) or is_file(target)):
        return
    from .fingerprints import weights_fingerprint

    fingerprint = weights_fingerprint(model)
    if is_file(source) and _weights_of(source) == fingerprint:
        if source.resolve() != target.resolve():
            shutil.copyfile(source, target)
    elif is_file(target) and _weights_of(target) != fingerprint:
        logger.warning("%s was of other weights and is removed: scripts/calibrate.py makes another", target)
        target.unlink()


def _weights_of(path: Path) -> str | None:
    """Returns the fingerprint of the weights that a file of confidences is for; None if it is damaged."""
    try:
        content = load_json(path.read_bytes(), path.name, ValueError)
    except (OSError, ValueError):
        return None
    return content.get("weights") if isinstance(content, dict) else None

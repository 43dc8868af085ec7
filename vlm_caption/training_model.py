"""The model of a run: composed as its config says, put where it is trained, its parts told, and saved."""

import dataclasses
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path

from huggingface_hub.errors import StrictDataclassError

from .checkpoints import save_files
from .composition import compose
from .data import Vectors
from .modeling_captioner import CaptionerForConditionalGeneration
from .processing_captioner import CaptionerProcessor
from .run_config import ConfigError, ModelSection

logger = logging.getLogger(__name__)


def compose_captioner(
    settings: ModelSection, captions: Iterable[str], vectors: Vectors | None = None
) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    """Builds the captioner that the settings describe.

    Args:
        settings: the config's.
        captions: those to train on; read only where the tokenizer is made of them.
        vectors: what it will caption, where that is no pictures.

    Raises:
        ConfigError: if they do not go together.
        BackboneError: if a tower cannot be had.
    """
    sizes = {} if vectors is None else {"feature_tokens": vectors.shape[1], "feature_size": vectors.shape[2]}
    try:
        return compose(**dataclasses.asdict(settings), captions=captions, **sizes)
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"The settings in model do not go together: {' '.join(str(error).split())}") from error


def log_parts(model: CaptionerForConditionalGeneration) -> None:
    """Says of every part of the model whether it is frozen or trained, and how large it is."""
    for name, part in model.core.named_children():
        parameters = list(part.parameters())
        trained = sum(p.numel() for p in parameters if p.requires_grad)
        total = sum(p.numel() for p in parameters)
        state = "frozen" if trained == 0 else "trained" if trained == total else f"{trained:,} trained"
        dtype = str(parameters[0].dtype).removeprefix("torch.")
        logger.info("%-22s %-28s %12s parameters  %-8s %s", name, type(part).__name__, f"{total:,}", dtype, state)
    logger.info("Trained in all: %s parameters", f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}")


def save_captioner(model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, directory: Path) -> None:
    """Writes a captioner's checkpoint, each file whole or not at all."""
    with save_files(directory) as partial:
        model.save_pretrained(partial)
        processor.save_pretrained(partial)
        for weights in partial.glob("*.safetensors"):
            shutil.copymode(partial / "config.json", weights)  # safetensors lets only the owner read it

"""The files of an exported captioner."""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import CheckpointError
from ..core.files import is_file
from ..core.untrusted import load_json

SETTINGS = "captioner.json"
VISION, LANGUAGE, TOKENIZER = "vision.onnx", "language.onnx", "tokenizer.json"
CHECKSUMS = "SHA256SUMS"

# The graph that unpacks weights of the language model, where they are stored in blocks.
BLOCKS = "blocks.onnx"

# The formats that are written and read; the second has weights in blocks.
FORMATS = (7, 8)


@dataclass(frozen=True)
class ExportSettings:
    """What `captioner.json` says.

    Attributes:
        checkpoint: An identifier of the weights.
        pixels: Arguments of [`PixelSettings`].
        prompt: Arguments of [`PromptSettings`].
        cache: "layers", "heads" and "width" of the language model's cache.
        positions: The language model's table of positions: "all", their number, and "an_image", how many of them the
            layer prefix of an image takes. None if there is no table.
        generation: Arguments of [`DecodingSettings`].
        vectors: By what a datastore finds pictures: arguments of [`VectorKind`], and "start", their place in the
            vision graph's pooled features.
    """

    checkpoint: str
    pixels: dict[str, Any]
    prompt: dict[str, Any]
    cache: dict[str, int]
    positions: dict[str, int] | None
    generation: dict[str, Any]
    vectors: dict[str, Any]


def is_export(folder: str | os.PathLike) -> bool:
    """Returns whether a folder holds an exported captioner."""
    return is_file(Path(folder).expanduser() / SETTINGS)


def read_settings(folder: Path) -> ExportSettings:
    """Reads `captioner.json`.

    Raises:
        CheckpointError: The folder is no export, is damaged, or was written by a newer version.
    """
    try:
        content = load_json((folder / SETTINGS).read_bytes(), SETTINGS)
        version = content.pop("format")
        if version not in FORMATS:
            raise CheckpointError(
                f"The export {str(folder)!r} has the format {version}, and this version reads {FORMATS[0]} and "
                f"{FORMATS[1]}: export it again, or install another vlm_caption."
            )
        settings = ExportSettings(**content)
    except FileNotFoundError as error:
        raise CheckpointError(f"The folder {str(folder)!r} is no exported captioner: it has no {SETTINGS}.") from error
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise CheckpointError(f"The export {str(folder)!r} has a damaged {SETTINGS} ({error}).") from error
    for name in (VISION, LANGUAGE, TOKENIZER):
        if not is_file(folder / name):
            raise CheckpointError(f"The export {str(folder)!r} is incomplete: it has no {name}.")
    return settings

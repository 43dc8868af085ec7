"""Writes the folder of an exported captioner."""

import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..captioning.captioner import Captioner
from ..captioning.consensus import FREQUENCIES_NAME
from ..core.console import progress, quiet_transformers
from ..core.errors import ConfigError
from ..core.extras import require
from ..core.files import move_folder, write_text
from ..core.shipped import shipped
from ..runtime.files import BLOCKS, CHECKSUMS, LANGUAGE, SETTINGS, TOKENIZER, VISION, read_settings
from ..towers.fingerprints import weights_fingerprint

if TYPE_CHECKING:
    import onnx

logger = logging.getLogger(__name__)

QUANTIZATIONS = ("int8", "int4")

_PACKAGES = ("onnxscript", "onnx", "onnxruntime")


def export_onnx(checkpoint: str | os.PathLike, output: str | os.PathLike, quantize: str | None = None) -> Path:
    """Exports a captioner to ONNX, for `vlm_caption.runtime`.

    The folder is checked before it gets its name: pixels must be those of the image processor to the last bit, and
    graphs in float32 must give the model's numbers.

    Args:
        checkpoint: A folder or a Hub id.
        output: The folder to write, which must not exist.
        quantize: "int8" to round the weights of linear layers and embeddings to 8 bits; "int4" to store those of the
            language model's linear layers in blocks of 4 bits, which become 8 when they are loaded; by default all
            stay float32.

    Returns:
        The folder.

    Raises:
        ConfigError: A tower is of a family that cannot be exported, or the folder cannot be written.
        CheckpointError: The checkpoint cannot be loaded, or the exported graphs do not agree with it.
        MissingPackageError: A package of the extra `onnx` is not installed.
        ValueError: The checkpoint's `model_card.json` is damaged.
    """
    folder = Path(output).expanduser()
    if quantize not in (None, *QUANTIZATIONS):
        raise ConfigError(f"quantize must be {' or '.join(QUANTIZATIONS)}, got {quantize!r}.")
    if os.path.lexists(folder):
        raise ConfigError(f"{folder} exists: name a folder that does not.")
    for package in _PACKAGES:
        require(package, "The export to ONNX")
    import torch

    captioner = Captioner.from_pretrained(checkpoint, device="cpu", dtype=torch.float32)
    _check_confidence(captioner)
    captioner.model.merge_adapters()
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as partial:
            inside = Path(partial) / folder.name
            inside.mkdir()
            for step in progress(_steps(captioner, inside, quantize), desc="export"):
                with quiet_transformers():
                    step()
            move_folder(inside, folder)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror or error}).") from error
    return folder


def _check_confidence(captioner: Captioner) -> None:
    """Drops confidences of other weights. Adapters that are merged change the weights' fingerprint."""
    if captioner.confidence is not None and captioner.confidence.weights != weights_fingerprint(captioner.model):
        logger.warning("The confidences are of other weights and are not exported: run scripts/calibrate.py first.")
        captioner.confidence = None


def _steps(captioner: Captioner, folder: Path, quantize: str | None) -> list[Callable[[], Any]]:
    """Returns what is to be done, in its order."""
    from ..hub.facts import read_facts
    from .checks import check_graphs, check_pixels
    from .vision import check_vision_tower

    check_vision_tower(captioner.model.core)
    facts = read_facts(Path(captioner.model.config.name_or_path))
    steps: list[Callable[[], Any]] = [
        lambda: _write_language(captioner, folder, quantize),
        lambda: check_pixels(captioner, read_settings(folder)),
        lambda: _write_vision(captioner, folder, quantize is not None),
        lambda: _write_card(captioner, folder, facts, quantize),
        lambda: _write_checksums(folder),
    ]
    if quantize is None:
        steps.insert(3, lambda: check_graphs(captioner, folder, read_settings(folder)))
    return steps


def _write_language(captioner: Captioner, folder: Path, quantize: str | None) -> None:
    """Writes the language model's graph, the tokenizer, the settings, and what captions are chosen and judged by."""
    from .blocks import UNPACKED, PackedWeights
    from .language import build_language_graph
    from .settings import export_settings
    from .smoothing import greatest_inputs

    packed = PackedWeights() if quantize == "int4" else None
    greatest = None if quantize is None else greatest_inputs(captioner)
    model = build_language_graph(captioner.model.core, quantize is not None, packed, greatest)
    past = [entry for entry in model.graph.input if entry.name.startswith("past.")]
    _, heads, _, width = (size.dim_value for size in past[0].type.tensor_type.shape.dim)
    settings = export_settings(captioner, {"layers": len(past) // 2, "heads": heads, "width": width}, quantize)
    if packed is None:
        save_graph(model, folder / LANGUAGE)
    else:
        save_graph(packed.model(), folder / BLOCKS)
        unpacked = folder / UNPACKED
        with unpacked.open("wb") as file:  # for the check of the graph alone
            file.truncate(packed.size)
        save_graph(model, folder / LANGUAGE)
        unpacked.unlink()
    write_text(folder / SETTINGS, json.dumps(settings, ensure_ascii=False, indent=2) + "\n")
    captioner.processor.tokenizer.backend_tokenizer.save(str(folder / TOKENIZER), pretty=False)
    frequencies = Path(captioner.model.config.name_or_path, FREQUENCIES_NAME)
    if frequencies.is_file():
        shutil.copyfile(frequencies, folder / FREQUENCIES_NAME)
    if captioner.confidence is not None:
        captioner.confidence.save(folder)
    (folder / VISION).touch()  # `read_settings` looks for it, and pixels are checked before the tower is traced


def _write_vision(captioner: Captioner, folder: Path, int8: bool) -> None:
    from .samples import sample_pictures
    from .vision import build_vision_graph

    pixels = captioner.processor.image_processor(sample_pictures()[:2], return_tensors="pt")["pixel_values"]
    save_graph(build_vision_graph(captioner.model.core, pixels, int8), folder / VISION)


def save_graph(model: "onnx.ModelProto", path: Path) -> None:
    """Writes a graph with its weights beside it, where onnxruntime maps them into memory, and checks it."""
    import onnx

    weights = path.with_name(f"{path.name}.data")
    onnx.save_model(model, path, save_as_external_data=True, location=weights.name, size_threshold=1024)
    weights.chmod(path.stat().st_mode)  # onnx lets nobody else read it
    onnx.checker.check_model(str(path), full_check=True)


def _write_card(captioner: Captioner, folder: Path, facts: dict[str, Any], quantize: str | None) -> None:
    from ..hub.card import exported_card

    write_text(folder / "README.md", exported_card(captioner.model, facts, quantize or "float32"))
    shutil.copyfile(shipped("LICENSE"), folder / "LICENSE")


def _write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of each file, for `sha256sum --check SHA256SUMS`."""
    lines = []
    for path in sorted(folder.iterdir()):
        with path.open("rb") as file:
            lines.append(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {path.name}\n")
    write_text(folder / CHECKSUMS, "".join(lines))

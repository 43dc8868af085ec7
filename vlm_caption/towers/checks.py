"""Checks a checkpoint of unknown origin before anything is built from it.

The JSON files of a checkpoint may ask for code to be run, name so many layers that building them would take days, or
contradict the weights. Each of these faults is reported in one sentence.
"""

import contextlib
import json
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..core.console import first_line_of
from ..core.errors import BackboneError, CheckpointError
from ..model import modeling_captioner
from ..model.processing_captioner import QUESTION
from .configuration import CaptionerConfig

# Where the Auto classes find the code of a full checkpoint. The installed package never runs that code.
AUTO_MAP = {
    "AutoConfig": "configuration_captioner.CaptionerConfig",
    "AutoModel": "modeling_captioner.CaptionerModel",
    "AutoModelForImageTextToText": "modeling_captioner.CaptionerForConditionalGeneration",
    "AutoProcessor": "processing_captioner.CaptionerProcessor",
}

_JSON_FILES = (
    *("config.json", "generation_config.json", "preprocessor_config.json"),
    *("processor_config.json", "tokenizer_config.json"),
)
_MAX_BUFFER_ELEMENTS = 10**8  # far above the masks and position tables of any family
_MOST_LAYERS = 200  # up to this number, a model is built without counting weights first, and missing ones are named
_SIZES = (
    *("hidden_size", "image_size", "intermediate_size", "num_attention_heads", "num_hidden_layers"),
    *("num_key_value_heads", "n_embd", "n_head", "n_layer", "n_positions", "patch_size", "vocab_size"),
)


@contextlib.contextmanager
def running_no_code(directory: Path) -> Generator[None]:
    """Names the file that asks for code if transformers refuses to run a tower's code inside a `with` block.

    Args:
        directory: The folder that the block loads from.

    Raises:
        BackboneError: The folder cannot be loaded without running its code.
    """
    try:
        yield
    except ValueError as error:
        for path, wanted in _wanted_code(directory):
            raise BackboneError(_refusal(path, wanted)) from error
        raise


def check_checkpoint(directory: Path) -> None:
    """Checks that the JSON files in a captioner's folder are whole, ask for no code, and give sizes that make sense.

    Raises:
        CheckpointError: A file is damaged, asks for code that lies beside it and is not a captioner's own, or gives
            a tower no config or a size below 1.
    """
    for path, wanted in _wanted_code(directory):
        if any(directory.glob("*.py")) and wanted not in AUTO_MAP.values():
            raise CheckpointError(_refusal(path, wanted))
    path = directory / "config.json"
    content = _read_object(path) if path.is_file() else {}
    for part in ("text_config", "vision_config"):
        fields = {} if content.get(part) is None else content[part]
        if not isinstance(fields, dict):
            raise CheckpointError(f"{path} is damaged ({part} is no object, but {fields!r}): fetch it again.")
        for name in _SIZES:
            for size in _as_list(fields.get(name)):
                if isinstance(size, int) and size < 1:
                    raise CheckpointError(
                        f"{path} has {part}.{name} = {size}, which must be at least 1: fetch it again."
                    )


def _refusal(path: Path, wanted: str) -> str:
    return (
        f"{path} wants the code {wanted} to be run, and vlm_caption runs no code of a checkpoint: remove auto_map "
        "from the file, or convert the model to a family that transformers knows."
    )


def _wanted_code(directory: Path) -> Iterator[tuple[Path, str]]:
    """Yields each JSON file of a folder that names code, and the code that it names.

    Raises:
        CheckpointError: A file holds no JSON object.
    """
    for name in _JSON_FILES:
        path = directory / name
        if not path.is_file():
            continue
        for wanted in _find_auto_maps(_read_object(path)):
            yield path, wanted


def _read_object(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is damaged ({first_line_of(error)}): fetch it again.") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged (it holds no JSON object): fetch it again.")
    return content


def _find_auto_maps(value: Any) -> Iterator[str]:
    """Yields the code that every `auto_map` in nested JSON names."""
    if isinstance(value, dict):
        for key, inner in value.items():
            if key == "auto_map":
                classes = inner.values() if isinstance(inner, dict) else [inner]
                yield from (str(name) for entry in classes for name in _as_list(entry) if name is not None)
            else:
                yield from _find_auto_maps(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _find_auto_maps(inner)


def _as_list(entry: Any) -> list:
    return entry if isinstance(entry, list) else [entry]


def load_config(name_or_path: Any, **hub: Any) -> CaptionerConfig:
    """Loads a captioner's config.

    Args:
        name_or_path: A folder or a Hub id.
        **hub: Options of the Hub.

    Raises:
        OSError: There is no such checkpoint.
        CheckpointError: `config.json` is not a captioner's.
    """
    try:
        config = CaptionerConfig.from_pretrained(name_or_path, **hub)
    except OSError:
        raise
    except Exception as error:  # each family's config raises errors of its own on values of the wrong kind
        raise CheckpointError(
            f"The config.json of {name_or_path} is not a captioner's ({' '.join(str(error).split())[:300]}): fetch it "
            "again."
        ) from error
    return config


def check_layers(config: CaptionerConfig, part: str, found: int, where: Any) -> None:
    """Checks that there are weights for the layers that a config asks for, before the layers are built.

    Args:
        config: The captioner's config.
        part: "vision_tower", "language_model" or "multi_modal_projector".
        found: The number of that part's weights.
        where: Where the weights are, for the message.

    Raises:
        CheckpointError: There are fewer weights than layers.
    """
    if part == "multi_modal_projector":
        layers = config.projector_layers or 0
    else:
        layers = _count_layers(config.text_config if part == "language_model" else config.vision_config)
    if layers > max(found, _MOST_LAYERS):
        raise CheckpointError(
            f"The config.json wants {layers} layers in the {part}, and {where} holds {found} weights of it: load the "
            "weights with the config.json that was saved with them."
        )


def _count_layers(config: Any) -> int:
    """Returns the number of layers in a tower's config, or 0 if none of the usual fields gives it."""
    arguments = getattr(config, "model_args", None)
    counts = [
        getattr(config, "num_hidden_layers", None),
        getattr(config, "depths", None),
        arguments.get("depth") if isinstance(arguments, dict) else None,
    ]
    return max(sum(value for value in _as_list(count) if isinstance(value, int)) for count in counts)


def check_weights(
    config: CaptionerConfig, shapes: Mapping[str, Sequence[int]], where: Any, absent: Sequence[str] = ()
) -> None:
    """Checks that a checkpoint has enough weights for the layers of each part that it holds.

    Args:
        config: The captioner's config.
        shapes: The weights' shapes, by name.
        where: The checkpoint.
        absent: The towers that the checkpoint leaves out.

    Raises:
        CheckpointError: There are fewer weights than layers.
    """
    for part in ("vision_tower", "language_model", "multi_modal_projector"):
        if part not in absent:
            check_layers(config, part, sum(f"{part}." in name for name in shapes), where)


def check_shapes(config: CaptionerConfig, shapes: Mapping[str, Sequence[int]], where: Any) -> None:
    """Checks that weights have the shapes that the config asks for, with a model on the meta device.

    Args:
        config: The captioner's config, with no tower left out.
        shapes: The weights' shapes by name. Unknown names are ignored, because transformers may know them as older
            names.
        where: Where the weights are, for the message.

    Raises:
        CheckpointError: Some have other shapes, or no model can be built from the config.
    """
    try:
        with torch.device("meta"):
            model = modeling_captioner.CaptionerForConditionalGeneration(config)
    except ImportError:
        raise
    except Exception as error:  # each family's modules raise errors of their own on values that make no sense
        raise CheckpointError(
            f"No model can be built from the config.json of {where} ({first_line_of(error)}): fetch it again."
        ) from error
    wrong = [
        f"{name} is {list(shapes[name])} and not {list(tensor.shape)}"
        for name, tensor in model.state_dict().items()
        if name in shapes and tuple(shapes[name]) != tuple(tensor.shape)
    ]
    if wrong:
        more = f", and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise CheckpointError(
            f"The weights of {where} do not fit its config.json ({'; '.join(wrong[:3])}{more}): load them with the "
            "config.json that was saved with them."
        )
    if sum(buffer.numel() for buffer in model.buffers()) > _MAX_BUFFER_ELEMENTS:
        raise CheckpointError(f"The config.json of {where} asks for tables too large for memory: fetch it again.")


def check_processor(processor: Any, config: CaptionerConfig, where: Any) -> None:
    """Checks that a processor makes the inputs that its model takes.

    Args:
        processor: The captioner's processor.
        config: The model's config.
        where: The checkpoint, for the message.

    Raises:
        CheckpointError: The number of image tokens or the placeholder differs, or a setting is of another kind.
    """
    for name in ("image_seq_length", "image_token_id"):
        if getattr(processor, name) != getattr(config, name):
            raise CheckpointError(
                f"The processor_config.json of {where} has {name} = {getattr(processor, name)!r}, and its config.json "
                f"{getattr(config, name)!r}: take both files from the same checkpoint."
            )
    for name, kind in (("prompt", str), ("chat", bool), ("start_token", str | None)):
        if not isinstance(getattr(processor, name), kind):
            raise CheckpointError(
                f"The processor_config.json of {where} gives {name} = {getattr(processor, name)!r}, which is of the "
                "wrong kind: fetch it again."
            )
    try:
        head, [tail] = processor.encode_prompts(["?" if QUESTION in processor.prompt else None])
        processor.tokenizer.pad({"input_ids": [head + tail, head]})
    except Exception as error:  # a tokenizer accepts any settings when it is loaded, and fails when it is used
        raise CheckpointError(
            f"The tokenizer of {where} cannot encode the prompt ({first_line_of(error)}): fetch its files again."
        ) from error


__all__ = [
    "AUTO_MAP",
    "check_checkpoint",
    "check_layers",
    "check_processor",
    "check_shapes",
    "check_weights",
    "load_config",
    "running_no_code",
]

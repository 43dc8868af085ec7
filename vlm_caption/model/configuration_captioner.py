"""Configuration of the composed captioner: two towers, the projector between them, and the image tokens' layout."""

import math
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, GenerationConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

# What `generate` is told, less what a language model's config holds as well.
_GENERATION_SETTINGS = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {
    *dir(PreTrainedConfig),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
}

# The settings that belong to each projector, and what they are where nothing is said: as in the projector's source.
PROJECTOR_SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"projector_expansion": 3, "projector_hidden_act": "gelu"},
    "prefix_mlp": {"projector_tokens": 10, "projector_hidden_act": "tanh"},
    "transformer": {
        "projector_tokens": 10,
        "projector_layers": 8,
        "projector_heads": 8,
        "projector_expansion": 2,
        "projector_hidden_act": "relu",
    },
    "resampler": {
        "projector_tokens": 64,
        "projector_layers": 3,
        "projector_heads": 8,
        "projector_expansion": 4,
        "projector_hidden_act": "gelu",
    },
    "pixel_shuffle": {"projector_shuffle": 2, "projector_expansion": None, "projector_hidden_act": None},
}

# Class and register tokens in front of the patches, of towers whose config has no field for their number.
_PREFIX_TOKENS = {
    **dict.fromkeys(("beit", "clip_vision_model", "data2vec-vision", "dinov2", "dinov2_with_registers"), 1),
    **dict.fromkeys(("dinov3_vit", "vit"), 1),
    "deit": 2,
    "siglip_vision_model": 0,
}


@strict
class CaptionerConfig(PreTrainedConfig):
    r"""
    Configuration of a [`CaptionerForConditionalGeneration`]: a vision tower, a projector and a causal language model.

    `CaptionerConfig()` is the smallest useful system: the 512-d ViT
    `timm/vit_mediumd_patch16_reg4_gap_384.sbb2_e200_in12k_ft_in1k`, `gpt2`, and a 512 → 1536 → 768 projection of
    1,968,384 trained parameters.

    Args:
        vision_config (`PreTrainedConfig` or `dict`): any vision tower that `AutoModel` builds; None with
            `feature_size`.
        text_config (`PreTrainedConfig` or `dict`): any language model that `AutoModelForCausalLM` builds.
        feature_size (`int`, *optional*): there is no vision tower: what is captioned comes as vectors of this width,
            computed elsewhere, as `image_features`.
        feature_tokens (`int`): with `feature_size`, how many such vectors an input is.
        image_tokens (`"pooled"`, `"patches"` or `"all"`): what the projector gets of an image: one pooled vector, the
            tower's patch tokens, or all its tokens as they are, class and register tokens included.
        image_grid (`int`, *optional*): with `"patches"`, average-pool the patches to `image_grid` × `image_grid`.
        image_size (`int`, *optional*): height and width of `pixel_values`, where these are not the tower's own
            `image_size` (DINOv2's is 518, and its image processor makes 224 × 224 pixels).
        pooled_in_front (`bool`): with `"patches"`, put the pooled vector before them.
        pooled_feature (`"pooler_output"`, `"cls"` or `"image_embeds"`): which vector is the pooled one.
            `"cls"` is the first token of `last_hidden_state`; `"image_embeds"` is CLIP's joint embedding (the tower is
            then built with its visual projection).
        image_start (`"bos"`, `"learned"` or `"none"`, *optional*): what stands at position 0, before the image tokens.
            Decoder language models park attention on their first position; a single projected token put there did
            not learn. Unset: the language model's BOS embedding where it has one.
        image_end (`"learned"` or `"none"`): whether a learned vector stands behind the image tokens.
        query_tokens (`int`): so many learned vectors stand behind the image and its end, as a prompt would.
        projector (`str`): what maps the tower's tokens to embeddings: `"linear"`, `"mlp"`, `"prefix_mlp"`,
            `"transformer"`, `"resampler"` or `"pixel_shuffle"` (see docs/projectors.md).
        projector_tokens (`int`, *optional*): tokens that `prefix_mlp`, `transformer` (10) and `resampler` (64) make of
            an image.
        projector_layers (`int`, *optional*), projector_heads (`int`, *optional*): of `transformer` (8, 8) and
            `resampler` (3, 8).
        projector_shuffle (`int`, *optional*): `pixel_shuffle` makes one token of so many by so many patches (2).
        projector_expansion (`int`, *optional*): hidden width of the projector, or of its transformer layers, in
            multiples of their input width: `mlp` (3), `transformer` (2), `resampler` (4). `pixel_shuffle` has a hidden
            layer only where this is set.
        projector_hidden_act (`str`, *optional*): activation of the hidden layers: gelu, in `prefix_mlp` tanh, in
            `transformer` relu.
        projector_dropout (`float`): in training, of the projected tokens; in `transformer` and `resampler`, of
            attention weights and of what each layer adds.
        freeze_vision (`bool`), freeze_language (`bool`): keep a tower as it is: no gradient, never in train mode. A
            tower that is not frozen is trained as a whole, or what the next four fields name of it.
        freeze_projector (`bool`): the same of the projector, and of learned vectors around the image tokens.
        vision_layers (`int`, *optional*), text_layers (`int`, *optional*): train a tower's last so many blocks alone,
            and the norm behind them.
        vision_adapter (`dict`, *optional*), text_adapter (`dict`, *optional*): the LoRA adapter that stands beside a
            tower's linear layers: `rank`, `alpha`, `dropout` and `targets` (last parts of the layers' names). It is
            what is trained of the tower, if anything is.
        image_token_id (`int`, *optional*): the image placeholder in `input_ids`. It is never looked up in the
            language model's embedding table; unset, it is the first id behind it.
        vision_backbone (`dict`, *optional*), text_backbone (`dict`, *optional*): where a pretrained tower came from:
            `name`, `revision` and the `fingerprint` of its weights.
        external_towers (`list[str]`): the towers whose weights are *not* in this checkpoint and are fetched from
            their backbone instead (`"vision_tower"`, `"language_model"`). Empty in a self-contained checkpoint.
        trained_weights (`list[str]`): weights of towers with a named backbone that were trained here, so that every
            checkpoint holds them: names such as `vision_tower.layernorm.weight`. A tower trained as a whole has no
            `fingerprint` in its backbone instead.
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
    projector_hidden_act: str | None = None
    projector_dropout: float = 0.0
    freeze_vision: bool = True
    freeze_language: bool = True
    freeze_projector: bool = False
    vision_layers: int | None = None
    text_layers: int | None = None
    vision_adapter: dict | None = None
    text_adapter: dict | None = None
    image_token_id: int | None = None
    vision_backbone: dict | None = None
    text_backbone: dict | None = None
    external_towers: list | tuple = ()
    trained_weights: list | tuple = ()
    tie_word_embeddings: bool = True

    def __post_init__(self, **kwargs):
        misplaced = sorted(_GENERATION_SETTINGS & set(kwargs))
        if misplaced:
            raise ValueError(
                f"{', '.join(misplaced)}: this is for generation, and the model's config takes no such settings. Set "
                "it in model.generation_config, or pass it to generate()."
            )
        names_tower = self.vision_config is not None
        super().__post_init__(**kwargs)  # which fills in the default tower
        if self.feature_size is not None:
            self._check_features(names_tower)
            self.vision_config = None
        elif self.feature_tokens != 1:
            raise ValueError("feature_tokens belongs to feature_size, which says that there is no vision tower.")
        bos_token_id = getattr(self.text_config, "bos_token_id", None)
        if self.image_start is None:
            self.image_start = "bos" if bos_token_id is not None else "none"
        if self.image_start == "bos" and bos_token_id is None:
            raise ValueError(
                f"image_start='bos' needs a language model with a BOS token, and {self.text_config.model_type} names "
                "none: choose 'learned' or 'none'."
            )
        if self.image_tokens != "patches" and (self.image_grid is not None or self.pooled_in_front):
            raise ValueError("image_grid and pooled_in_front belong to image_tokens='patches'.")
        if self.image_tokens != "pooled" and self.pooled_feature == "image_embeds":
            raise ValueError(
                "pooled_feature='image_embeds' is not as wide as the patches are: it belongs to image_tokens='pooled'."
            )
        if self.image_grid is not None and self.image_grid < 1:
            raise ValueError(f"image_grid must be at least 1, got {self.image_grid}.")
        if self.query_tokens < 0:
            raise ValueError(f"query_tokens must be at least 0, got {self.query_tokens}.")
        self._settle_projector()
        if self.image_token_id is None:
            self.image_token_id = self.text_config.vocab_size
        if self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id {self.image_token_id} lies inside the language model's vocabulary of "
                f"{self.text_config.vocab_size}; the placeholder must be an id behind it."
            )
        self.external_towers = list(self.external_towers)
        self.trained_weights = list(self.trained_weights)
        # The language model ties its own head; the composed model ties nothing on top of that.
        self.tie_word_embeddings = getattr(self.text_config, "tie_word_embeddings", True)

    def _settle_projector(self) -> None:
        """Gives the projector's settings their defaults.

        Raises:
            ValueError: for a setting that is another projector's, or tokens that this one cannot take.
        """
        own = PROJECTOR_SETTINGS[self.projector]
        for name in {name: None for settings in PROJECTOR_SETTINGS.values() for name in settings}:
            value = getattr(self, name)
            if value is None:
                setattr(self, name, own.get(name))
            elif name not in own:
                owners = [projector for projector, settings in PROJECTOR_SETTINGS.items() if name in settings]
                raise ValueError(
                    f"{name} does not belong to projector={self.projector!r}: leave it out, or choose the projector "
                    f"{' or '.join(owners)}."
                )
            elif isinstance(value, int) and value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")
        if not 0 <= self.projector_dropout < 1:
            raise ValueError(f"projector_dropout must be at least 0 and below 1, got {self.projector_dropout}.")
        has_tower = self.feature_size is None
        if self.projector == "prefix_mlp" and not self.takes_one_vector:
            mend = "image_tokens='pooled'" if has_tower else "feature_tokens=1"
            raise ValueError(
                f"projector='prefix_mlp' makes its tokens of one pooled vector: set {mend}, or choose the projector "
                "transformer or resampler."
            )
        if self.projector == "resampler" and self.takes_one_vector:
            mend = "image_tokens to 'patches' or 'all'" if has_tower else "feature_tokens above 1"
            raise ValueError(
                f"projector='resampler' chooses among an {'image' if has_tower else 'input'}'s tokens: set {mend}, or "
                "choose the projector transformer or prefix_mlp."
            )
        if self.projector == "pixel_shuffle":
            if self.image_tokens != "patches" or self.pooled_in_front:
                raise ValueError(
                    "projector='pixel_shuffle' puts neighbouring patches together: set image_tokens='patches' and "
                    "leave out pooled_in_front."
                )
            if self.projector_expansion is None and self.projector_hidden_act is not None:
                raise ValueError(
                    "projector_hidden_act is for a hidden layer, and projector='pixel_shuffle' has one only where "
                    "projector_expansion is set: set that as well."
                )
            if self.projector_expansion is not None:
                self.projector_hidden_act = self.projector_hidden_act or "gelu"

    def _check_features(self, names_tower: bool) -> None:
        if names_tower or self.vision_backbone is not None:
            raise ValueError(
                "feature_size says that there is no vision tower: leave out vision_config, or feature_size."
            )
        if (self.image_tokens, self.image_grid, self.pooled_in_front) != ("pooled", None, False) or (
            self.pooled_feature != "pooler_output"
        ):
            raise ValueError(
                "image_tokens, image_grid, pooled_in_front and pooled_feature choose among a vision tower's tokens, "
                "and there is no vision tower: leave them out."
            )
        for name in ("feature_size", "feature_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    @property
    def takes_one_vector(self) -> bool:
        """Whether the projector gets one vector of an image, or of an input, and not a set of tokens."""
        return self.image_tokens == "pooled" if self.feature_size is None else self.feature_tokens == 1

    @property
    def vision_feature_size(self) -> int:
        """Width of the vision tower's image tokens, or of the vectors in their place: the projector's input.

        Raises:
            ValueError: if the tower's config names no width.
        """
        if self.feature_size is not None:
            return self.feature_size
        names = ("projection_dim",) if self.pooled_feature == "image_embeds" else ("hidden_size", "num_features")
        for name in names:
            if width := getattr(self.vision_config, name, None):
                return width
        raise ValueError(
            f"The {self.vision_config.model_type} vision config names no feature width: set its {' or '.join(names)}."
        )

    @property
    def text_embedding_size(self) -> int:
        """Width of the language model's embeddings: D_text. That of OPT-350M's is not that of its layers."""
        return getattr(self.text_config, "word_embed_proj_dim", None) or self.text_config.hidden_size

    @property
    def vision_seq_length(self) -> int:
        """Number of the vision tower's tokens that go into the projector: N.

        Raises:
            ValueError: for all patches, or all tokens, of a tower whose config does not say how many there are.
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
        """How many class and register tokens stand in front of the patches; `num_prefix_tokens` is timm's word."""
        count = getattr(self.vision_config, "num_prefix_tokens", None)
        if count is None:
            count = _PREFIX_TOKENS.get(self.vision_config.model_type)
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
        """Number of placeholders that one image takes in `input_ids` (the BOS before them not counted).

        Those of the learned start, end and query vectors are among them.

        Raises:
            ValueError: as of `vision_seq_length`, or if `projector_shuffle` does not divide the patches' grid.
        """
        if self.projector_tokens is not None:
            tokens = self.projector_tokens
        elif self.projector_shuffle is not None:
            grid = math.isqrt(self.vision_seq_length)
            if grid % self.projector_shuffle:
                raise ValueError(
                    f"projector_shuffle={self.projector_shuffle} does not divide the {grid} by {grid} patches of an "
                    "image: choose another projector_shuffle or image_grid."
                )
            tokens = (grid // self.projector_shuffle) ** 2
        else:
            tokens = self.vision_seq_length
        return tokens + (self.image_start == "learned") + (self.image_end == "learned") + self.query_tokens

    @property
    def text_positions(self) -> int | None:
        """How many positions the language model has: the length of its position table; None where it has no table."""
        if getattr(self.text_config, "rope_parameters", None) is not None:
            return None  # rotary positions go on; `generate` warns where that is further than was trained
        return getattr(self.text_config, "max_position_embeddings", None)

    @property
    def start_token_id(self) -> int | None:
        """The token at position 0, before the image tokens: the language model's BOS, or None."""
        return self.text_config.bos_token_id if self.image_start == "bos" else None


__all__ = ["CaptionerConfig"]

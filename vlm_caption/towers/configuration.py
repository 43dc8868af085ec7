"""The captioner's configuration with the settings of training, and checks that all settings fit together."""

import math
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import GenerationConfig, PreTrainedConfig

from ..model import configuration_captioner

# Settings of `generate`, except those that a language model's config has too.
_GENERATION_SETTINGS = {name for name in vars(GenerationConfig()) if not name.startswith("_")} - {
    *dir(PreTrainedConfig),
    *("use_cache", "bos_token_id", "eos_token_id", "pad_token_id", "decoder_start_token_id"),
}

# The settings of each projector, with their defaults: those of its source.
PROJECTOR_SETTINGS: dict[str, dict[str, Any]] = {
    "linear": {},
    "mlp": {"projector_expansion": 3, "projector_hidden_size": None, "projector_hidden_act": "gelu"},
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
    "pixel_shuffle": {
        "projector_shuffle": 2,
        "projector_expansion": None,
        "projector_hidden_size": None,
        "projector_hidden_act": None,
    },
}

_PROJECTOR_FIELDS = list(dict.fromkeys(name for settings in PROJECTOR_SETTINGS.values() for name in settings))


@strict
class CaptionerConfig(configuration_captioner.CaptionerConfig):
    r"""
    Configuration of a [`CaptionerForConditionalGeneration`]: a vision tower, a projector and a causal language model.

    `CaptionerConfig()` is the smallest useful system: the 512-d ViT
    `timm/vit_mediumd_patch16_reg4_gap_384.sbb2_e200_in12k_ft_in1k`, `gpt2`, and a 512 → 1536 → 768 projection of
    1,968,384 trained parameters.

    Attributes:
        vision_config (`PreTrainedConfig` or `dict`): Any vision tower that `AutoModel` builds; None with
            `feature_size`.
        text_config (`PreTrainedConfig` or `dict`): Any language model that `AutoModelForCausalLM` builds.
        feature_size (`int`, *optional*): Leave out the vision tower, and caption vectors of this width that were
            computed elsewhere. They are passed as `image_features`.
        feature_tokens (`int`): The number of such vectors in one input.
        image_tokens (`"pooled"`, `"patches"` or `"all"`): The projector's input: one pooled vector, the tower's patch
            tokens, or all its tokens, class and register tokens included.
        image_grid (`int`, *optional*): Average-pool the patches to `image_grid` × `image_grid`. Needs `"patches"`.
        image_size (`int`, *optional*): Height and width of `pixel_values`, if these differ from the tower's own
            `image_size` (DINOv2's is 518, and its image processor makes 224 × 224 pixels).
        pooled_in_front (`bool`): Put the pooled vector before the patches. Needs `"patches"`.
        pooled_feature (`"pooler_output"`, `"cls"` or `"image_embeds"`): Which vector is the pooled one. `"cls"` is the
            first token of `last_hidden_state`; `"image_embeds"` is CLIP's joint embedding, for which the tower is
            built with its visual projection. With `vision_feature_layer`, it is the class token of each layer.
        vision_feature_layer (`int` or `list[int]`, *optional*): The layers of the vision tower whose hidden states are
            taken instead of its output, by their places in transformers' `hidden_states`: 1 is the first layer, −1
            the last. Each state goes through a layer norm without weights; several stand side by side, so the
            projector's input is as many times as wide.
        image_start (`"bos"`, `"learned"` or `"none"`, *optional*): The vector at position 0, before the image tokens.
            Decoder language models park attention on their first position; a single projected token that stood there
            did not learn. By default the embedding of the language model's BOS, if it has one.
        image_end (`"learned"` or `"none"`): Whether a learned vector follows the image tokens.
        query_tokens (`int`): The number of learned vectors after the image and its end, in the place of a prompt.
        projector (`str`): The module that maps the tower's tokens to embeddings: `"linear"`, `"mlp"`, `"prefix_mlp"`,
            `"transformer"`, `"resampler"` or `"pixel_shuffle"` (see docs/projectors.md).
        projector_tokens (`int`, *optional*): The number of tokens that `prefix_mlp`, `transformer` (10) and
            `resampler` (64) make of an image.
        projector_layers (`int`, *optional*): The number of layers of `transformer` (8) and `resampler` (3).
        projector_heads (`int`, *optional*): The number of attention heads of `transformer` and `resampler` (8).
        projector_shuffle (`int`, *optional*): r, where `pixel_shuffle` makes one token of r × r patches (2).
        projector_expansion (`int`, *optional*): Hidden width of the projector, or of its transformer layers, in
            multiples of their input width: `mlp` (3), `transformer` (2), `resampler` (4). `pixel_shuffle` has a hidden
            layer only if this or `projector_hidden_size` is set.
        projector_hidden_size (`int`, *optional*): Hidden width of `mlp` and `pixel_shuffle`, instead of
            `projector_expansion`.
        projector_hidden_act (`str`, *optional*): Activation of the hidden layers: gelu, in `prefix_mlp` tanh, in
            `transformer` relu.
        projector_dropout (`float`): Dropout of the projected tokens; in `transformer` and `resampler`, of the
            attention weights and of the output of each layer.
        layer_prefix_rank (`int`, *optional*): Put keys and values of the image tokens in front of each layer of the
            language model too, computed by matrices of this rank (see docs/projectors.md).
        freeze_vision (`bool`): Keep the vision tower as it is: no gradient, never in train mode. A tower that is not
            frozen is trained whole, or in the parts that `vision_layers` or `vision_adapter` names.
        freeze_language (`bool`): The same for the language model, with `text_layers` and `text_adapter`.
        freeze_projector (`bool`): The same for the projector and the learned vectors around the image tokens.
        vision_layers (`int`, *optional*): Train only this many of the vision tower's last blocks, and the norm after
            them.
        text_layers (`int`, *optional*): The same for the language model.
        vision_adapter (`dict`, *optional*): The LoRA adapter beside the linear layers of the vision tower: `rank`,
            `alpha`, `dropout` and `targets` (last parts of the layers' names). Nothing else of the tower is trained.
        text_adapter (`dict`, *optional*): The same for the language model.
        image_token_id (`int`, *optional*): The image placeholder in `input_ids`. It is never looked up in the language
            model's embedding table; by default it is the first id after the table.
        vision_backbone (`dict`, *optional*): Where a pretrained vision tower came from: `name`, `revision` and the
            `fingerprint` of its weights.
        text_backbone (`dict`, *optional*): The same for the language model.
        external_towers (`list[str]`): The towers whose weights are *not* in this checkpoint and are fetched from
            their backbone instead (`"vision_tower"`, `"language_model"`). Empty in a full checkpoint.
        trained_weights (`list[str]`): Names of weights of pretrained towers that were trained here, so that every
            checkpoint holds them, such as `vision_tower.layernorm.weight`. A tower that was trained whole has no
            `fingerprint` in its backbone instead.

    Raises:
        ValueError: Settings do not fit together, or are settings of `generate`.
    """

    freeze_vision: bool = True
    freeze_language: bool = True
    freeze_projector: bool = False
    vision_layers: int | None = None
    text_layers: int | None = None
    vision_adapter: dict | None = None
    text_adapter: dict | None = None
    vision_backbone: dict | None = None
    text_backbone: dict | None = None
    trained_weights: list | tuple = ()

    def __post_init__(self, **kwargs):
        misplaced = sorted(_GENERATION_SETTINGS & set(kwargs))
        if misplaced:
            raise ValueError(
                f"{', '.join(misplaced)}: this is for generation, and the model's config takes no such settings. Set "
                "it in model.generation_config, or pass it to generate()."
            )
        if self.feature_size is not None:
            self._check_features()
        elif self.feature_tokens != 1:
            raise ValueError("feature_tokens belongs to feature_size, which says that there is no vision tower.")
        super().__post_init__(**kwargs)
        self._check_image_tokens()
        self._settle_projector()
        if self.layer_prefix_rank is not None:
            self._check_layer_prefix(self.layer_prefix_rank)
        self.trained_weights = list(self.trained_weights)

    def _check_features(self) -> None:
        """Checks the settings of a captioner without a vision tower."""
        if self.vision_config is not None or self.vision_backbone is not None:
            raise ValueError(
                "feature_size says that there is no vision tower: leave out vision_config, or feature_size."
            )
        chosen = (self.image_tokens, self.image_grid, self.pooled_in_front, self.pooled_feature)
        if chosen != ("pooled", None, False, "pooler_output") or self.vision_feature_layer is not None:
            raise ValueError(
                "image_tokens, image_grid, pooled_in_front, pooled_feature and vision_feature_layer choose among a "
                "vision tower's tokens, and there is no vision tower: leave them out."
            )
        for name in ("feature_size", "feature_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}.")

    def _check_image_tokens(self) -> None:
        """Checks the settings of the tokens that an image becomes."""
        if self.image_start == "bos" and getattr(self.text_config, "bos_token_id", None) is None:
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
        if self.vision_feature_layer is not None:
            self._check_layers()
        if self.image_grid is not None and self.image_grid < 1:
            raise ValueError(f"image_grid must be at least 1, got {self.image_grid}.")
        if self.query_tokens < 0:
            raise ValueError(f"query_tokens must be at least 0, got {self.query_tokens}.")
        if self.image_token_id < self.text_config.vocab_size:
            raise ValueError(
                f"image_token_id {self.image_token_id} lies inside the language model's vocabulary of "
                f"{self.text_config.vocab_size}; the placeholder must be an id behind it."
            )

    def _check_layer_prefix(self, rank: int) -> None:
        """Checks that keys and values can be put in front of the language model's layers."""
        if rank < 1:
            raise ValueError(f"layer_prefix_rank must be at least 1, got {rank}.")
        kinds = set(getattr(self.text_config, "layer_types", None) or ()) - {"full_attention"}
        if kinds or getattr(self.text_config, "num_attention_heads", None) is None:
            raise ValueError(
                f"layer_prefix_rank needs layers whose attention reaches all tokens, and the "
                f"{self.text_config.model_type} language model has others: leave it out."
            )

    def _check_layers(self) -> None:
        """Checks the layers of the vision tower whose hidden states are wanted."""
        tower, layers = self.vision_config, self.vision_feature_layers
        where = f"vision_feature_layer={self.vision_feature_layer!r}"
        if tower.model_type == "timm_wrapper":
            raise ValueError(
                f"{where} takes all tokens of a layer, and timm's towers give its patches alone: leave out the "
                "setting, or choose a tower of another family."
            )
        count = getattr(tower, "num_hidden_layers", None)
        if not layers or (isinstance(count, int) and not all(-count <= i <= count and i for i in layers)):
            raise ValueError(
                f"{where} must name layers of the {tower.model_type} tower, from 1 to {count} or from -1 backwards."
            )
        if isinstance(count, int) and len({i % (count + 1) for i in layers}) < len(layers):
            raise ValueError(f"{where} names a layer twice: name each once.")
        if self.pooled_feature == "image_embeds":
            raise ValueError(
                f"{where} takes no image_embeds, which are made of the last layer: leave out one of them."
            )
        tokens_in_front = configuration_captioner.PREFIX_TOKENS.get(tower.model_type, self.pooled_feature == "cls")
        if (self.image_tokens == "pooled" or self.pooled_in_front) and not tokens_in_front:
            raise ValueError(
                f"{where} takes the class token of each layer for the pooled vector, and the {tower.model_type} tower "
                "is not known to have one: choose image_tokens='patches' without pooled_in_front."
            )

    def _settle_projector(self) -> None:
        """Gives the projector's settings their defaults, and checks them."""
        own = dict(PROJECTOR_SETTINGS[self.projector])
        if self.projector_hidden_size is not None and self.projector_expansion is not None:
            raise ValueError(
                "projector_hidden_size and projector_expansion both give the width of the hidden layer: leave out one "
                "of them."
            )
        if self.projector_hidden_size is not None and "projector_hidden_size" in own:
            own["projector_expansion"] = None
        for name in _PROJECTOR_FIELDS:
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
        self._check_projector_input()
        if self.projector == "pixel_shuffle" and self._has_hidden_width:
            self.projector_hidden_act = self.projector_hidden_act or "gelu"

    def _check_projector_input(self) -> None:
        """Checks that the projector can take the tokens that it is to get."""
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
        if self.projector != "pixel_shuffle":
            return
        if self.image_tokens != "patches":
            raise ValueError(
                "projector='pixel_shuffle' puts neighbouring patches together: set image_tokens='patches'."
            )
        if not self._has_hidden_width and self.projector_hidden_act is not None:
            raise ValueError(
                "projector_hidden_act is for a hidden layer, and projector='pixel_shuffle' has one only where "
                "projector_expansion or projector_hidden_size is set: set one of them as well."
            )

    @property
    def _has_hidden_width(self) -> bool:
        return self.projector_expansion is not None or self.projector_hidden_size is not None

    @property
    def image_seq_length(self) -> int:
        """The number of placeholders for one image in `input_ids`: its learned vectors included, a BOS not.

        Raises:
            ValueError: See `vision_seq_length`; or `projector_shuffle` does not divide the grid of patches.
        """
        if self.projector_shuffle is not None:
            grid = math.isqrt(self.vision_seq_length - self.pooled_in_front)
            if grid % self.projector_shuffle:
                raise ValueError(
                    f"projector_shuffle={self.projector_shuffle} does not divide the {grid} by {grid} patches of an "
                    "image: choose another projector_shuffle or image_grid."
                )
        return super().image_seq_length


__all__ = ["PROJECTOR_SETTINGS", "CaptionerConfig"]

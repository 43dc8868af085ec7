"""The model of a run: composed as its config says, its parts listed in the log, and saved."""

import dataclasses
import logging
import re
import shutil
from collections.abc import Iterable
from pathlib import Path

import torch
from huggingface_hub.errors import StrictDataclassError

from ..config.run_config import RunConfig
from ..config.sections import DataSection
from ..core.errors import ConfigError
from ..core.files import writing_files
from ..data.vectors import Vectors
from ..model.adapters import adapter_targets
from ..model.freezing import PARTS, TOWERS, check_policies
from ..model.processing_captioner import QUESTION
from ..towers.captioner import CaptionerForConditionalGeneration
from ..towers.composition import compose
from ..towers.precision import use_bf16
from ..towers.processor import CaptionerProcessor
from .checkpoints import PARTIAL_NAME
from .parent import load_parent
from .stages import Stage

logger = logging.getLogger(__name__)


def compose_captioner(
    config: RunConfig, texts: Iterable[str], vectors: Vectors | None = None
) -> tuple[CaptionerForConditionalGeneration, CaptionerProcessor]:
    """Builds the captioner that a config describes, with a language model that is never trained in bfloat16.

    If the config names a checkpoint to start from, the captioner is loaded from there instead.

    Args:
        config: The run's config.
        texts: What the language model will read. They are read only if the tokenizer is made of them.
        vectors: The vectors that it will caption instead of pictures.

    Raises:
        ConfigError: The settings do not go together.
        BackboneError: A tower cannot be had.
        CheckpointError: The checkpoint to start from is damaged.
    """
    if config.model.init_from is not None:
        return load_parent(config, vectors)
    settings = dataclasses.asdict(config.model)
    del settings["init_from"]
    sizes = {} if vectors is None else {"feature_tokens": vectors.shape[1], "feature_size": vectors.shape[2]}
    rounded = use_bf16(config.training.precision) and "language" not in config.changed_towers
    dtype = {"text_config": torch.bfloat16} if rounded else torch.float32
    try:
        return compose(**settings, **sizes, dtype=dtype, captions=texts)
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"The settings in model do not go together: {' '.join(str(error).split())}") from error


def changed_towers(config: RunConfig, model: CaptionerForConditionalGeneration) -> list[str]:
    """Returns the towers whose own weights change in any stage, by training or by merging an adapter into them.

    Args:
        config: The run's config.
        model: The captioner before its first stage. It may have adapters of the checkpoint that the run starts from.
    """

    def replaces_adapter(module: str) -> bool:
        adapter = getattr(model.config, f"{PARTS[TOWERS[module]]}_adapter")
        settings = [stage.module(module) for stage in config.stage_settings()]
        return adapter is not None and any(
            (own.rank, adapter_targets(getattr(model.core, TOWERS[module]), own.targets))
            != (adapter["rank"], adapter["targets"])
            for own in settings
            if own.policy == "lora"
        )

    return [module for module in TOWERS if module in config.changed_towers or replaces_adapter(module)]


def set_generation(model: CaptionerForConditionalGeneration, config: RunConfig) -> None:
    """Gives the model the config's generation settings. Dev captions are written with them, and they are saved.

    If captions longer than usual are trained on, captions are also written that long.

    Args:
        model: The run's model.
        config: The run's config.

    Raises:
        ConfigError: The settings do not go together.
    """
    own = model.generation_config
    longest = config.data.max_caption_tokens
    if longest > DataSection.max_caption_tokens:
        own.max_new_tokens = max(longest, own.max_new_tokens or 0)
    settings = config.generation.settings()
    for name in ("consensus", "datastore"):  # which are of evaluation
        settings.pop(name, None)
    if settings.get("length_penalty", 1) != 1 and settings.get("num_beams", own.num_beams or 1) == 1:
        raise ConfigError(  # transformers would refuse to save it
            "generation.length_penalty is of beam search: set generation.num_beams above 1, or leave it out."
        )
    own.update(**settings)


def set_prompt(
    model: CaptionerForConditionalGeneration,
    processor: CaptionerProcessor,
    settings: DataSection,
    questions: Iterable[str] = (),
) -> None:
    """Gives the processor the settings' prompt, and makes `generate` stop at the end of its answers.

    If the language model has a table of positions, captions get no longer than the prompt leaves room for.

    Args:
        model: The run's model.
        processor: The model's processor.
        settings: The settings with the prompt.
        questions: All questions that fill the prompt; the longest one counts.

    Raises:
        ConfigError: The prompt is to be a chat, and the language model has no chat template for it.
    """
    processor.prompt, processor.chat = settings.prompt, settings.chat
    try:
        end_token_id = processor.end_token_id
    except ValueError as error:
        raise ConfigError(f"data.chat: {error}") from error
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    if end_token_id not in ends:
        model.generation_config.eos_token_id = [*ends, end_token_id]
    positions = model.config.text_positions()
    if positions is not None:
        longest = max(questions, key=len, default="?") if QUESTION in processor.prompt else None
        before, [behind] = processor.encode_prompts([longest])
        room = max(1, positions - len(before) - len(behind))  # where there is none, the collator says so
        model.generation_config.max_new_tokens = min(room, model.generation_config.max_new_tokens or room)


def check_stages(model: CaptionerForConditionalGeneration, stages: list[Stage]) -> None:
    """Checks that the stages fit the model, before the first of them is trained.

    Raises:
        ConfigError: One does not.
    """
    for stage in stages:
        where = "training" if stage.name is None else f"The stage {stage.name}"
        try:
            check_policies(model, stage.policies)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"{where}: {error}") from error
        if all(policy.train == "frozen" for policy in stage.policies.values()):
            raise ConfigError(f"{where} trains nothing: vision, projector and language are all frozen.")


def log_parts(model: CaptionerForConditionalGeneration) -> None:
    """Logs of every part of the model how large it is and whether it is trained; of a part of it, by names."""
    parts: list[tuple[str, str, dict[str, torch.nn.Parameter]]] = [
        (name, type(part).__name__, dict(part.named_parameters())) for name, part in model.core.named_children()
    ]
    parts += [(name, "learned", {name: vector}) for name, vector in model.core.soft_tokens().items()]
    for name, kind, parameters in parts:
        trained = {key: p.numel() for key, p in parameters.items() if p.requires_grad}
        total = sum(p.numel() for p in parameters.values())
        count = sum(trained.values())
        state = "frozen" if not trained else "trained" if count == total else f"{count:,} trained"
        dtype = str(next(iter(parameters.values())).dtype).removeprefix("torch.")
        logger.info("%-22s %-28s %12s parameters  %-8s %s", name, kind, f"{total:,}", dtype, state)
        if trained and count < total:
            groups: dict[str, list[int]] = {}
            for key, size in trained.items():
                groups.setdefault(re.sub(r"(?<=\.)\d+(?=\.)", "*", key), []).append(size)
            for key, sizes in groups.items():
                logger.info("  trained: %s.%s  %d of %s parameters", name, key, len(sizes), f"{sum(sizes):,}")
    logger.info("Trained in all: %s parameters", f"{sum(p.numel() for p in model.parameters() if p.requires_grad):,}")


def save_captioner(
    model: CaptionerForConditionalGeneration, processor: CaptionerProcessor, directory: Path, **options
) -> None:
    """Writes a captioner's checkpoint, each file whole or not at all; for `options` see `save_pretrained`."""
    with writing_files(directory, PARTIAL_NAME) as partial:
        model.save_pretrained(partial, **options)
        processor.save_pretrained(partial)
        for weights in partial.glob("*.safetensors"):
            shutil.copymode(partial / "config.json", weights)  # safetensors lets only the owner read it

"""Describes a training run for the model card."""

from collections.abc import Sequence
from typing import Any

import torch
import transformers

from ..config.run_config import RunConfig
from ..config.sections import DataSection
from ..data.corpora import rows_of
from ..data.corpus import count_captions
from ..hub.facts import data_name
from ..model.freezing import ModulePolicy, describe_policy, policies_of
from ..towers.captioner import CaptionerForConditionalGeneration
from .data import TrainingData
from .stages import Stage


def training_facts(
    config: RunConfig,
    stages: Sequence[Stage],
    model: CaptionerForConditionalGeneration,
    steps: int,
    epochs: float,
    processes: int,
    data: TrainingData,
    **facts: Any,
) -> dict[str, Any]:
    """Returns a training run's facts, without paths and names of the machine that it ran on.

    Facts that differ between stages are the last stage's; `by_stage` has those of each.

    Args:
        config: The run's config.
        stages: The run's stages; one if the config names none.
        model: The trained model.
        steps, epochs: How far the last stage went.
        processes: How many processes trained together.
        data: What was trained and evaluated on.
        **facts: More facts; None if one is not known.
    """
    settings = stages[-1].settings
    parts = {name: next(part.parameters()) for name, part in model.core.named_children()}
    device = model.device
    known = {
        **_data_facts(config.data, data),
        "prompt": config.data.prompt or None,
        "chat": config.data.chat or None,
        "max_caption_tokens": config.data.max_caption_tokens,
        "steps": steps,
        "images_a_step": settings.batch_size * settings.accumulation * processes,
        "images_seen": round(epochs * data.own_an_epoch),
        "optimiser": "AdamW",
        "learning_rate": settings.learning_rate,
        "learning_rates": _own_rates(stages[-1]) or None,
        "objective": None if settings.objective == "all" else settings.objective,
        "weight_decay": settings.weight_decay or None,
        "augment": config.data.augment,
        "ema_decay": settings.ema_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": config.training.seed,
        "precision": {name: str(weight.dtype).removeprefix("torch.") for name, weight in parts.items()},
        "trained": {
            module: describe_policy(policy)
            for module, policy in policies_of(model.config).items()
            if module != "projector" and policy.train != "frozen"
        }
        or None,
        "by_stage": {stage.name: _stage_facts(stage) for stage in stages if stage.name is not None} or None,
        "trained_parameters": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "versions": {"torch": str(torch.__version__), "transformers": transformers.__version__},
        **facts,
    }
    return {name: fact for name, fact in known.items() if fact is not None}


def _data_facts(settings: DataSection, data: TrainingData) -> dict[str, Any]:
    """Returns the names and sizes of the corpora."""
    replay = None
    if settings.replay is not None and data.replay is not None:
        replay = {"name": data_name(settings.replay), "images_an_epoch": data.replay.drawn}
    return {
        "data": {
            "name": data_name(settings.path),
            "train": {
                "split": settings.train_split,
                "images": len(data.own),
                "captions": count_captions(data.own),
            },
            "dev": {"split": settings.dev_split, "images": len(data.dev)},
        },
        "corpora": [
            {
                "name": name,
                "images": group.rows,
                "images_an_epoch": group.drawn,
                "dev_images": len(rows_of(data.dev).get(name, ())),
            }
            for name, group in zip(data.names, data.groups, strict=False)
        ]
        or None,
        "replay": replay,
        "cut_captions": data.cut_captions or None,
        "images_left_out": data.left_out or None,
    }


def _stage_facts(stage: Stage) -> dict[str, Any]:
    """Returns what a stage trains, at which learning rates, and its objective if that is not all tokens."""
    trained = {module: describe_policy(policy) for module, policy in _trained(stage).items()}
    facts: dict[str, Any] = {
        "trained": trained,
        "learning_rates": {module: stage.rates[module][0] for module in trained},
    }
    return facts if stage.settings.objective == "all" else facts | {"objective": stage.settings.objective}


def _own_rates(stage: Stage) -> dict[str, float]:
    """Returns the learning rates of the trained modules that have their own."""
    rates = {module: stage.rates[module][0] for module in _trained(stage)}
    return {module: rate for module, rate in rates.items() if rate != stage.settings.learning_rate}


def _trained(stage: Stage) -> dict[str, ModulePolicy]:
    return {module: policy for module, policy in stage.policies.items() if policy.train != "frozen"}

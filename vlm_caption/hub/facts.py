"""What is known of a checkpoint's weights: how they were trained, and how well they scored.

Training and evaluation write it to `model_card.json` in the checkpoint's folder, which `model_card.py` makes the card
from. It holds no paths and no names of machines, for it is uploaded with the checkpoint.
"""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.digests import digest_tensors
from ..core.files import write_text
from ..core.untrusted import load_json
from ..model.freezing import (
    PARTS,
    holds_trained_weights,
    is_adapter,
    module_of,
)
from ..model.modeling_captioner import CaptionerForConditionalGeneration, CaptionerPreTrainedModel

logger = logging.getLogger(__name__)

FACTS_NAME = "model_card.json"

# Facts that a person may add: no program knows them.
_FACTS_BY_HAND = ("summary", "licence", "language", "limits")


def weights_fingerprint(model: CaptionerPreTrainedModel) -> str:
    """What identifies the weights that are not a frozen tower's: "sha256:" and 64 hex digits."""
    core: Any = model.base_model
    trained = tuple(f"{tower}." for tower in PARTS if holds_trained_weights(core, tower))
    digest = digest_tensors(
        (name, tensor)
        for name, tensor in core.state_dict().items()
        if module_of(name) == "projector" or is_adapter(name) or name.startswith(trained)
    )
    for part in PARTS.values():
        if adapter := getattr(core.config, f"{part}_adapter"):
            digest.update(json.dumps([part, adapter["alpha"]]).encode())  # what no weight tells
    return f"sha256:{digest.hexdigest()}"


def read_facts(folder: Path) -> dict[str, Any]:
    """What a checkpoint's `model_card.json` says; {} where there is none.

    Raises:
        ValueError: if it is damaged.
    """
    path = folder / FACTS_NAME
    try:
        facts = load_json(path.read_bytes(), path.name)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}): mend or remove it.") from error
    if not isinstance(facts, dict):
        raise ValueError(f"{path} is damaged (it holds no object): mend or remove it.")
    return facts


def trained_caption_tokens(model: CaptionerPreTrainedModel) -> int | None:
    """The `data.max_caption_tokens` that a checkpoint was trained with; None where that is not known.

    Args:
        model: as it was loaded from the checkpoint.
    """
    try:
        facts = read_facts(Path(str(model.name_or_path)))
    except ValueError as error:
        logger.warning("%s It is not known where captions were cut in training.", error)
        return None
    tokens = facts.get("training", {}).get("max_caption_tokens")
    return tokens if tokens is not None and facts.get("weights") == weights_fingerprint(model) else None


def record_training(model: CaptionerForConditionalGeneration, folder: Path, training: dict[str, Any]) -> None:
    """Writes down how a checkpoint was trained. What was known of earlier weights there is forgotten.

    Args:
        model: as it was saved.
        folder: the checkpoint's.
        training: as of `training_facts`.
    """
    try:
        by_hand = {name: fact for name, fact in read_facts(folder).items() if name in _FACTS_BY_HAND}
    except ValueError as error:  # a whole training is not to end in one
        logger.warning("%s It was overwritten.", error)
        by_hand = {}
    _write_facts(folder, {"weights": weights_fingerprint(model), **by_hand, "training": training})


def record_evaluation(model: CaptionerForConditionalGeneration, folder: Path, evaluation: dict[str, Any]) -> None:
    """Adds the scores of a checkpoint to its facts, in place of earlier ones of the same kind.

    Args:
        model: as it was loaded from the folder.
        folder: the checkpoint's.
        evaluation: as of `evaluation_facts`.
    """
    facts = read_facts(folder)
    fingerprint = weights_fingerprint(model)
    if facts.get("weights", fingerprint) != fingerprint:
        logger.warning("%s tells of other weights than are in its folder: its facts are dropped", folder / FACTS_NAME)
        facts = {}

    def kind(entry: dict) -> list:
        return [entry.get(name) for name in ("data", "split", "images", "prompt", "generation")]

    others = [entry for entry in facts.get("evaluations", []) if kind(entry) != kind(evaluation)]
    _write_facts(folder, {"weights": fingerprint, **facts, "evaluations": [*others, evaluation]})


def evaluation_facts(
    model: CaptionerForConditionalGeneration,
    data: str,
    split: str,
    images: int,
    prompt: str,
    generation: dict[str, Any],
    metrics: dict[str, float | None],
    command: list[str],
    intervals: Mapping[str, Sequence[float]] | None = None,
) -> dict[str, Any]:
    """An evaluation's facts, without the paths of the machine that it ran on.

    Args:
        model: the one that was scored.
        data: path of the captioned images.
        split, images: which of them, and how many.
        prompt: what the captions went on from.
        generation: settings instead of the model's own.
        metrics: as of `Evaluation`; None is not known.
        command: the command line, as a list.
        intervals: the ends of the 95 % intervals of some metrics.
    """
    own = model.generation_config
    return {
        "data": data_name(data),
        "split": split,
        "images": images,
        "prompt": prompt,
        "generation": {"num_beams": own.num_beams or 1, "max_new_tokens": own.max_new_tokens} | generation,
        "metrics": {name: round(value, 5) for name, value in metrics.items() if value is not None},
        "intervals": {name: [round(end, 5) for end in ends] for name, ends in (intervals or {}).items()},
        "command": shlex.join(map(_without_folder, command)),
    }


def data_name(path: str) -> str:
    """The name of a corpus: of its folder, also where a table in it was named."""
    resolved = Path(path).resolve()
    return resolved.parent.name if resolved.is_file() else resolved.name


def _without_folder(word: str) -> str:
    """A word of a command line; of an absolute path only the last part."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    return f"{option}{equals}{Path(value).name}" if Path(value).is_absolute() else word


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    write_text(folder / FACTS_NAME, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

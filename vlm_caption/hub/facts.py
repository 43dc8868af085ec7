"""Reads and records facts about a checkpoint's weights: how they were trained, and how they scored.

Training and evaluation write the facts to `model_card.json` in the checkpoint's folder, and `card.py` renders the
model card from them. The file is uploaded with the checkpoint, so it contains no paths and no host names.
"""

import json
import logging
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..core.files import write_text
from ..core.untrusted import load_json
from ..data.corpora import corpus_names
from ..towers.captioner import CaptionerForConditionalGeneration, CaptionerPreTrainedModel
from ..towers.fingerprints import weights_fingerprint

logger = logging.getLogger(__name__)

FACTS_NAME = "model_card.json"

# What some of the facts must be, for a checkpoint may come from somebody else.
_KINDS: dict[str, type] = {"training": dict, "evaluations": list, "confidence": dict}

# Facts that only a person can add.
_FACTS_BY_HAND = ("summary", "licence", "language", "limits")


def read_facts(folder: Path) -> dict[str, Any]:
    """Returns the content of a checkpoint's `model_card.json`; {} if there is no such file.

    Args:
        folder: The folder of the checkpoint.

    Raises:
        ValueError: The file is damaged.
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
    for name, kind in _KINDS.items():
        if not isinstance(facts.get(name, kind()), kind):
            raise ValueError(f"{path} is damaged ({name} is of the wrong kind): mend or remove it.")
    if not all(isinstance(entry, dict) for entry in facts.get("evaluations", [])):
        raise ValueError(f"{path} is damaged (evaluations holds something else than objects): mend or remove it.")
    return facts


def trained_caption_tokens(model: CaptionerPreTrainedModel) -> int | None:
    """Returns the `data.max_caption_tokens` that a checkpoint was trained with; None if it is unknown.

    Args:
        model: The model, as it was loaded from the checkpoint.
    """
    try:
        facts = read_facts(Path(str(model.name_or_path)))
    except ValueError as error:
        logger.warning("%s The caption length used in training is unknown.", error)
        return None
    tokens = facts.get("training", {}).get("max_caption_tokens")
    is_number = isinstance(tokens, int) and tokens > 0
    return tokens if is_number and facts.get("weights") == weights_fingerprint(model) else None


def record_training(model: CaptionerForConditionalGeneration, folder: Path, training: dict[str, Any]) -> None:
    """Records how a checkpoint was trained, and drops the facts about earlier weights in the same folder.

    Args:
        model: The model, as it was saved.
        folder: The folder of the checkpoint.
        training: The facts that `training_facts` returns.

    Raises:
        OSError: The facts cannot be written.
    """
    try:
        by_hand = {name: fact for name, fact in read_facts(folder).items() if name in _FACTS_BY_HAND}
    except ValueError as error:  # a damaged file must not end a training run
        logger.warning("%s It was overwritten.", error)
        by_hand = {}
    _write_facts(folder, {"weights": weights_fingerprint(model), **by_hand, "training": training})


def record_evaluation(model: CaptionerForConditionalGeneration, folder: Path, evaluation: dict[str, Any]) -> None:
    """Adds the scores of a checkpoint to its facts.

    Scores of an earlier evaluation with the same data and settings are replaced.

    Args:
        model: The model, as it was loaded from the folder.
        folder: The folder of the checkpoint.
        evaluation: The facts that `evaluation_facts` returns.

    Raises:
        ValueError: The facts of the checkpoint are damaged.
        OSError: The facts cannot be written.
    """
    facts = _facts_of(model, folder)

    def kind(entry: dict) -> list:
        return [entry.get(name) for name in ("data", "split", "images", "prompt", "generation")]

    others = [entry for entry in facts.get("evaluations", []) if kind(entry) != kind(evaluation)]
    _write_facts(folder, {**facts, "evaluations": [*others, evaluation]})


def record_confidence(
    model: CaptionerForConditionalGeneration, folder: Path, fitted_on: dict[str, Any], measured: dict[str, Any]
) -> None:
    """Adds to a checkpoint's facts how good its confidences are. Those of earlier ones are replaced.

    Args:
        model: The model, as it was loaded from the folder.
        folder: The folder of the checkpoint.
        fitted_on, measured: The attributes of [`Confidence`].

    Raises:
        ValueError: The facts of the checkpoint are damaged.
        OSError: The facts cannot be written.
    """
    _write_facts(folder, _facts_of(model, folder) | {"confidence": {"fitted_on": fitted_on, "measured": measured}})


def _facts_of(model: CaptionerForConditionalGeneration, folder: Path) -> dict[str, Any]:
    """Returns the facts about a model's weights in a folder, beginning with their fingerprint.

    Raises:
        ValueError: They are damaged.
    """
    facts = read_facts(folder)
    fingerprint = weights_fingerprint(model)
    if facts.get("weights", fingerprint) != fingerprint:
        logger.warning("%s tells of other weights than are in its folder: its facts are dropped", folder / FACTS_NAME)
        facts = {}
    return {"weights": fingerprint, **facts}


def evaluation_facts(
    model: CaptionerForConditionalGeneration,
    data: str | Sequence[str],
    generation: dict[str, Any],
    metrics: dict[str, float | None],
    command: list[str],
    intervals: Mapping[str, Sequence[float]] | None = None,
    **facts: Any,
) -> dict[str, Any]:
    """Returns the facts of an evaluation, without the paths of the machine that it ran on.

    Args:
        model: The model that was evaluated.
        data: The path of the captioned images, or several.
        generation: The generation settings that differ from the model's own.
        metrics: The scores as fractions and the losses in nats per token; None if not computed.
        command: The command line that reproduces the evaluation, word by word.
        intervals: The ends of the 95 % intervals of some metrics.
        **facts: The `split`, its number of `images`, and the `prompt` before each caption.
    """
    own = model.generation_config
    return {
        "data": data_name(data),
        **facts,
        "generation": {"num_beams": own.num_beams or 1, "max_new_tokens": own.max_new_tokens} | generation,
        "metrics": {name: round(value, 5) for name, value in metrics.items() if value is not None},
        "intervals": {name: [round(end, 5) for end in ends] for name, ends in (intervals or {}).items()},
        "command": shlex.join(map(_without_folder, command)),
    }


def data_name(path: str | Sequence[str]) -> str:
    """Returns the name of a corpus; of several, all their names."""
    return ", ".join(corpus_names([path] if isinstance(path, str) else path))


def _without_folder(word: str) -> str:
    """Returns a word of a command line, with only the last part of an absolute path, or of each in a list `[a, b]`."""
    option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
    if value.startswith("[") and value.endswith("]"):
        entries = (entry.strip().strip("'\"") for entry in value[1:-1].split(","))
        return f"{option}{equals}[{', '.join(map(_last_part, entries))}]"
    return f"{option}{equals}{_last_part(value)}"


def _last_part(path: str) -> str:
    return Path(path).name if Path(path).is_absolute() else path


def _write_facts(folder: Path, facts: dict[str, Any]) -> None:
    write_text(folder / FACTS_NAME, json.dumps(facts, indent=2, ensure_ascii=False) + "\n")

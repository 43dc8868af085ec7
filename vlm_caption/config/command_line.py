"""Settings as command-line options: `--training.max_steps 10`, or `--max-steps 10` for short."""

import argparse
import inspect
import re
import types
from collections.abc import Collection
from typing import Any

from ..core.console import ArgumentParser
from ..core.errors import ConfigError
from ..core.text import preview
from ..core.untrusted import load_yaml
from .checks import SECTIONS, check_name, field_types, members, type_name
from .run_config import RunConfig


def setting_meanings() -> dict[str, str]:
    """Returns the meaning of every setting by its full name, from the docstrings of the sections."""
    return {
        f"{section}.{name}": meaning
        for section, section_class in SECTIONS.items()
        for name, meaning in attribute_meanings(section_class).items()
    }


def attribute_meanings(documented: type) -> dict[str, str]:
    """Returns the entries under "Attributes:" in a class's docstring, each in one line."""
    _, _, listed = (inspect.getdoc(documented) or "").partition("Attributes:\n")
    entries = (entry.partition(": ") for entry in re.split(r"\n(?=    \S)", listed))
    return {name.strip(): " ".join(meaning.split()) for name, _, meaning in entries}


def add_arguments(
    parser: ArgumentParser, sections: Collection[str] = ("model", "data", "training", "generation")
) -> None:
    """Adds an option for every setting of some sections."""
    meanings, defaults = setting_meanings(), RunConfig()
    for name, hint in field_types().items():
        section, _, attribute = name.partition(".")
        if section not in sections:
            continue
        default = getattr(getattr(defaults, section), attribute)
        shown = "" if default is None or default == "" else f" (default: {str(default).lower()})"
        parser.add_argument(
            f"--{attribute.replace('_', '-')}",
            f"--{name}",
            dest=name,
            default=argparse.SUPPRESS,
            metavar=type_name(hint),
            help=f"{section}: {meanings[name]}{shown}",
        )


def parse_arguments(parser: ArgumentParser, argv: list[str] | None = None) -> tuple[argparse.Namespace, dict]:
    """Parses the command line of a parser with the options of [`add_arguments`].

    Args:
        parser: The parser.
        argv: The arguments. With None, those of the program.

    Returns:
        The other options, and the settings by their full names.

    Raises:
        ConfigError: An option is unknown, in which case the message suggests a similar one; or the value of a setting
            is not valid YAML.
    """
    arguments, unknown = parser.parse_known_args(argv)
    for option in unknown:
        check_name(option.split("=")[0], parser.options, "there is no option")
    hints = field_types()
    settings = {name: _parse(name, value, hints[name]) for name, value in vars(arguments).items() if name in hints}
    return arguments, settings


def _parse(name: str, text: str, hint: Any) -> Any:
    """Parses a value as YAML, except text, which is taken literally because a prompt may look like YAML."""
    kinds = members(hint)
    is_dict = dict in kinds and text.startswith("{")
    is_list = list in kinds and text.startswith("[") and text.endswith("]")
    is_null = types.NoneType in kinds and text == "null"
    if str in kinds and not (is_dict or is_list or is_null):
        return text
    try:
        return load_yaml(text, name, ConfigError)
    except ConfigError as error:
        raise ConfigError(f"{name} must be {type_name(hint)}, and {preview(text)} is not.") from error

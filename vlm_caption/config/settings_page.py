"""Writes the tables of docs/settings.md from the docstrings: `python -m vlm_caption.config.settings_page PAGE`."""

import dataclasses
import re
import sys
from pathlib import Path
from typing import Any

from ..core.files import write_text
from .checks import SECTIONS
from .command_line import attribute_meanings
from .sections import ModuleSettings, ReinforceSettings


def fill_tables(page: str) -> str:
    """Returns a page with a new table between each pair of lines `<!-- SECTION -->` and `<!-- end -->`.

    Args:
        page: Markdown. A section is "model", "data", "training", "generation", "module" for the fields of
            `ModuleSettings`, or "reinforce" for those of `ReinforceSettings`.
    """
    tables = {name: _table(section, f"{name}.") for name, section in SECTIONS.items()}
    tables["module"] = _table(ModuleSettings, "")
    tables["reinforce"] = _table(ReinforceSettings, "")
    for name, table in tables.items():
        before, mark, rest = page.partition(f"<!-- {name} -->\n")
        _, end, after = rest.partition("<!-- end -->")
        page = before + mark + table + end + after
    return page


def _table(section: Any, prefix: str) -> str:
    lines = ["| setting | default | meaning |", "|---|---|---|"]
    meanings = attribute_meanings(section)
    for field in dataclasses.fields(section):
        lines.append(f"| `{prefix}{field.name}` | `{_default(field.default)}` | {_markdown(meanings[field.name])} |")
    return "\n".join(lines) + "\n"


def _default(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return "null" if value is None else str(value).lower()
    return str(value) if value != "" else '""'


def _markdown(meaning: str) -> str:
    """Writes quoted values as code, and paths in docs/ as links."""
    meaning = re.sub(r'"([^" ]+)"', r"`\1`", meaning)
    return re.sub(r"docs/(\w+)\.md", lambda match: f"[{match[1].replace('_', ' ')}]({match[1]}.md)", meaning)


def main(page: Path) -> None:
    """Rewrites the tables of a page in place."""
    write_text(page, fill_tables(page.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(Path(sys.argv[1]))

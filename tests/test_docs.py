"""What README and docs name: files, links, modules, commands and their options are there."""

import importlib
import re
import shlex
from functools import cache
from pathlib import Path

import pytest
from commands import REPOSITORY

from vlm_caption.cli.main import COMMANDS, run

PAGES = [
    *(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md")),
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
MACHINERY = [REPOSITORY / name for name in ("Makefile", ".ci/run")]
SCRIPTS = {
    "caption": "caption",
    "train": "train",
    "evaluate": "evaluate",
    "calibrate": "calibrate",
    "index": "index",
    "demo": "demo",
    "serve": "serve",
} | {
    "inspect_data": "inspect",
    "cache_features": "cache",
}

EXAMPLES = {"configs/mine.yaml"}  # of a reader's own

PATH = re.compile(r"(?<![\w./-])(?:vlm_caption|scripts|tests|docs|configs|benchmarks|examples|checkpoints)/[\w./*-]+")
TEST_FILE = re.compile(r"\btest_\w+\.py\b")
LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]+))?\)")
HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
IMPORT = re.compile(r"^\s*from (vlm_caption[\w.]*) import ([\w, ]+)", re.MULTILINE)
DOTTED = re.compile(r"\bvlm_caption(?:\.\w+)+")
COMMAND = re.compile(r"scripts/(\w+)\.py\s(.*)|vlm-caption (\w+)\s(.*)")
OTHER_PROGRAM = re.compile(r"((?:tests|benchmarks|examples)/[\w/]+\.py)(.*)")


@pytest.fixture(scope="module", params=PAGES, ids=lambda page: page.name)
def page(request) -> Path:
    return request.param


def commands(page: Path) -> list[str]:
    """The lines of a page's shell blocks and the code in its text, continued lines as one."""
    text = page.read_text()
    lines = [line for kind, block in BLOCK.findall(text) if kind == "sh" for line in block.splitlines()]
    lines += re.findall(r"`([^`]+)`", BLOCK.sub("", text))
    return re.sub(r"\\\n\s*", " ", "\n".join(line.replace("\n", " ") for line in lines)).splitlines()


def options(line: str) -> set[str]:
    """The options in a part of a command line, without what follows in a comment or behind a pipe."""
    words = shlex.split(re.split(r"[|&>…]", line)[0].replace("'", ""), comments=True)
    return {word.partition("=")[0] for word in words if word.startswith("--")}


@cache
def page_names(page: Path) -> set[str]:
    """The names by which a page's headings can be linked to, as GitHub makes them."""
    headings = HEADING.findall(BLOCK.sub("", page.read_text()))
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("file", [*PAGES, *MACHINERY], ids=lambda file: file.name)
def test_every_path_is_there(file):
    for path in set(PATH.findall(file.read_text())):
        path = path.rstrip("./-")
        assert path in EXAMPLES or list(REPOSITORY.glob(path)), f"{file.name} names {path}"


def test_every_test_file_is_there(page):
    for name in set(TEST_FILE.findall(page.read_text())):
        assert list((REPOSITORY / "tests").rglob(name)), f"{page.name} names {name}"


def test_every_link_leads_to_a_page_and_a_heading(page):
    for file, heading in LINK.findall(page.read_text()):
        target = (page.parent / file) if file else page
        assert target.exists(), f"{page.name} links to {file}"
        assert not heading or heading in page_names(target), f"{page.name} links to {file}#{heading}"


def test_every_name_of_the_package_can_be_imported(page):
    text = page.read_text()
    for module, names in IMPORT.findall(text):
        for name in names.split(","):
            assert hasattr(importlib.import_module(module), name.strip()), f"{page.name}: {module} has no {name}"
    for dotted in set(DOTTED.findall(text)):
        module, attributes = dotted, []
        while True:
            try:
                value = importlib.import_module(module)
                break
            except ModuleNotFoundError:
                module, _, attribute = module.rpartition(".")
                attributes.insert(0, attribute)
        for attribute in attributes:
            value = getattr(value, attribute)


def test_every_option_of_a_command_is_known(page, capsys):
    known = {}
    for line in commands(page):
        for script, arguments, command, more in COMMAND.findall(line):
            command = command or SCRIPTS[script]
            if command not in COMMANDS:
                continue
            if command not in known:
                with pytest.raises(SystemExit):
                    run(command, ["--help"], prog=command)
                known[command] = set(re.findall(r"--[\w.-]+", capsys.readouterr().out)) | {"--help"}
            assert options(arguments or more) <= known[command], f"{page.name}: {line}"
        for program, arguments in OTHER_PROGRAM.findall(line):
            if (REPOSITORY / program).is_file():  # the other test looks at the rest
                text = (REPOSITORY / program).read_text()
                assert all(option in text for option in options(arguments)), f"{page.name}: {line}"

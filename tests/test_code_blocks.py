"""What README and docs show works: Python runs on stand-ins, commands pass their own parsers, settings are checked.

A block that cannot run here says so in a comment before it: <!-- not run: needs two GPUs -->
"""

import argparse
import faulthandler
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from coco_files import REFERENCES, RIGHT, write_files
from commands import REPOSITORY
from fake_hub import running_hub
from tiny_models import picture, save_language_model, save_vision_tower
from tiny_runs import write_colours
from torch.distributed.run import parse_args as parse_torchrun

from vlm_caption import compose
from vlm_caption.cli import cache, calibrate, evaluate, index, inspect, train
from vlm_caption.config.command_line import parse_arguments
from vlm_caption.config.run_config import RunConfig
from vlm_caption.towers import sources

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+) -->\n+)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
SCRIPTS = {"caption": "caption", "export": "export", "serve": "serve", "train": "train"}
HERE_DOCUMENT = re.compile(r"<<'(\w+)'\n.*?^\1$", re.MULTILINE | re.DOTALL)
CHAT_TEMPLATE = "{% for m in messages %}{{ '<bos>' if loop.first }}{{ m.role }}: {{ m.content }} {% endfor %}"


@dataclass
class Block:
    page: Path
    line: int
    kind: str
    text: str
    not_run: str | None  # why

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


class ParsedError(BaseException):
    """A program has understood its arguments and would now start its work."""


def blocks(page: Path, kind: str) -> list[Block]:
    text = page.read_text()
    return [
        Block(page, text.count("\n", 0, match.start(3)) + 1, kind, match[3], match[1])
        for match in BLOCK.finditer(text)
        if match[2] == kind
    ]


def all_blocks(kind: str) -> list[Block]:
    return [block for page in PAGES for block in blocks(page, kind)]


def test_every_block_is_of_a_kind_that_is_tested():
    kinds = {match[2] for page in PAGES for match in BLOCK.finditer(page.read_text())}
    assert kinds == {"python", "sh", "yaml"}


# ---- Python


@pytest.fixture(scope="module")
def stand_ins(tmp_path_factory) -> Path:
    """A folder with everything that the pages take for granted, tiny."""
    folder = tmp_path_factory.mktemp("stand_ins")
    shutil.copytree(REPOSITORY / "examples", folder / "examples")
    vision = save_vision_tower(folder / "towers" / "dinov2-small", "dinov2")
    language = save_language_model(folder / "towers" / "smollm2-135m-instruct", "llama", max_position_embeddings=512)
    for name in ("checkpoints/embedded", "runs/mine", "runs/chat"):
        chat = name == "runs/chat"
        write_captioner(folder / name, vision, language, image_tokens="patches", image_grid=2, chat=chat)
    write_captioner(folder / "runs" / "vectors", "none", language, feature_size=4)
    (folder / "runs" / "mine" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for name in ("photo.jpg", "a.jpg", "b.jpg", "photos/1.jpg", "photos/2.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture().save(folder / name)
    table = write_colours(folder / "mine")
    table.write_text(table.read_text().replace("image,caption,split", "image,text,split"))
    np.save(folder / "mine" / "new.npy", np.ones((2, 4), dtype=np.float32))
    write_files(folder, RIGHT, REFERENCES)
    (folder / "references.json").rename(folder / "captions_val2014.json")
    return folder


def write_captioner(folder: Path, *towers: str, chat: bool = False, **settings) -> None:
    model, processor = compose(*towers, **settings)
    model.generation_config.update(max_new_tokens=8, do_sample=False)
    model.save_pretrained(folder)
    if chat:
        processor.chat_template, processor.prompt, processor.chat = CHAT_TEMPLATE, "Describe the picture.", True
    processor.save_pretrained(folder)


@pytest.fixture
def workplace(stand_ins, tmp_path, monkeypatch, own_cache) -> Path:
    """A copy of the stand-ins as the working directory; the wheels of towers are tiny."""
    folder = tmp_path / "workplace"
    shutil.copytree(stand_ins, folder)
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PATH", "")  # no Java, whose METEOR takes long
    towers = {f"wheel:{tower.name}": tower for tower in (stand_ins / "towers").iterdir()}
    monkeypatch.setattr(sources, "fetch_wheel", lambda name, wheel, fetch: towers[name])
    return folder


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=lambda page: page.name)
def test_python_blocks_run(page, workplace):
    """In their order: a block may use what the blocks before it have made."""
    names: dict = {"__name__": page.stem}
    for block in blocks(page, "python"):
        # Errors name the page and the line.
        code = compile("\n" * (block.line - 1) + block.text, str(page), "exec")
        if block.not_run:
            continue
        if "push_to_hub" in block.text:
            run_with_hub(block, workplace)
        else:
            exec(code, names)


def run_with_hub(block: Block, folder: Path) -> None:
    script = folder / "block.py"
    script.write_text(block.text + "\nprint('{}')\n")
    with running_hub(folder / "hub") as hub:
        hub.run(script, home=folder / "home")
        assert set(hub.repositories) == set(re.findall(r'push_to_hub\("([^"]+)"', block.text))


# ---- Shell


def shell_commands(text: str) -> Iterator[list[str]]:
    """The commands of a block as lists of words, without comments, redirections and the contents of files."""
    line = ""
    for part in HERE_DOCUMENT.sub("", text).replace("\\\n", " ").splitlines():
        line += part
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        try:
            words = list(lexer)
        except ValueError:  # a quotation that goes on
            line += "\n"
            continue
        line, command = "", []
        for word in [*words, ";"]:
            if not set(word) <= set(";|&<>()"):
                command.append(word)
            elif word in (">", "<", ">>"):
                command.append(">")
            else:
                if command:
                    yield command
                command = []
    assert not line.strip(), f"a quotation does not end: {line}"


def program_and_arguments(command: list[str]) -> tuple[str, list[str]]:
    """Without what stands before the program and behind its own arguments."""
    if ">" in command:
        command = command[: command.index(">")]
    while re.match(r"\w+=|nice$", command[0]):
        command = command[1:]
    return Path(command[0]).name, command[1:]


@pytest.fixture
def parse(monkeypatch, capsys):
    """Parses the arguments of a Python program of the repository, as itself does, up to where its work starts."""
    understand = argparse.ArgumentParser.parse_args

    def parse_args(parser, *arguments, **settings):
        understand(parser, *arguments, **settings)
        raise ParsedError

    def parse_settings(parser, argv):
        arguments, settings = parse_arguments(parser, argv)
        file = Path(arguments.config or "")
        RunConfig.load(file if file.is_file() else None, settings)
        raise ParsedError

    def parse(script: str, argv: list[str]) -> None:
        path = Path(script)
        assert path.is_file(), script
        if "ArgumentParser" not in path.read_text() and path.parent.name != "scripts":
            return  # takes no options
        with monkeypatch.context() as patch:
            patch.chdir(REPOSITORY)
            patch.setattr(sys, "argv", [script, *argv])
            patch.setattr(sys, "path", [str(path.resolve().parent), *sys.path])
            patch.setattr(argparse.ArgumentParser, "parse_args", parse_args)
            patch.setattr(faulthandler, "enable", lambda: None)  # wants a terminal or a file
            for command in (cache, calibrate, evaluate, index, inspect, train):
                patch.setattr(command, "parse_arguments", parse_settings)
            try:
                runpy.run_path(script, run_name="__main__")
            except ParsedError:
                return
            except SystemExit as ended:
                if ended.code == 0 and "--help" in argv:
                    return
                pytest.fail(f"{shlex.join([script, *argv])} ended with {ended.code}: {capsys.readouterr().err}")
        pytest.fail(f"{script} did not parse its arguments")

    return parse


def check_command(command: list[str], parse) -> None:
    program, arguments = program_and_arguments(command)
    if program == "python" and arguments[0] == "-c":
        compile(arguments[1], "-c", "exec")
    elif program == "python" and arguments[0] == "-m":
        assert arguments[1] == "pytest"
        options = argparse.ArgumentParser()
        options.add_argument("-k")
        options.add_argument("-m")
        options.add_argument("paths", nargs="*")
        assert all(Path(path).exists() for path in options.parse_known_args(arguments[2:])[0].paths)
    elif program == "python":
        parse(arguments[0], arguments[1:])
    elif program == "vlm-caption":
        parse(f"scripts/{SCRIPTS[arguments[0]]}.py", arguments[1:])
    elif program == "torchrun":
        launch = parse_torchrun(arguments)
        parse(launch.training_script, launch.training_script_args)
    elif program == "accelerate":
        assert arguments[0] == "launch"
        launch = launch_command_parser().parse_args(arguments[1:])
        assert launch.config_file is None or Path(launch.config_file).is_file()
        parse(launch.training_script, launch.training_script_args)
    elif program == "make":
        makefile = Path("Makefile").read_text()
        assert all(re.search(f"^{target}:", makefile, re.MULTILINE) for target in arguments)
    elif program == "qemu-x86_64":  # `-cpu NAME` and what it runs, which says more than whether it is installed
        assert arguments[0] == "-cpu"
        check_command(arguments[2:], parse)
    else:
        assert program == "wait" or shutil.which(program), program


@pytest.mark.parametrize("block", all_blocks("sh"), ids=str)
def test_commands_are_understood(block, parse, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    checked = subprocess.run(["bash", "-n"], input=block.text, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    for command in shell_commands(block.text):
        check_command(command, parse)


# ---- Settings


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_settings_are_known(block, tmp_path):
    config = tmp_path / "config.yaml"
    config.write_text(block.text)
    RunConfig.load(config)

"""What README and docs show works: Python runs on stand-ins, commands get past their own parsers, settings are checked.

A block that cannot run here says so in a comment before it: <!-- not run: needs two GPUs -->
"""

import argparse
import json
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from coco_files import REFERENCES, RIGHT, write_files
from commands import REPOSITORY
from fake_hub import running_hub
from tiny_models import (
    picture,
    save_checkpoint,
    save_language_model,
    save_vision_tower,
    tiny_config,
    tiny_model,
    tiny_processor,
)
from torch.distributed.run import parse_args as parse_torchrun

from vlm_caption.cli import cache, evaluate, inspect, main, train
from vlm_caption.config.command_line import parse_arguments
from vlm_caption.config.run_config import RunConfig
from vlm_caption.towers import sources

PAGES = [REPOSITORY / "README.md", REPOSITORY / "CONTRIBUTING.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
BLOCK = re.compile(r"(?:<!-- not run: ([^>]+) -->\n+)?^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
HERE_DOCUMENT = re.compile(r"<<'(\w+)'\n.*?^\1$", re.MULTILINE | re.DOTALL)
CHAT_TEMPLATE = "{% for message in messages %}{{ '<bos>' if loop.first }}{{ message.role }}:{{ message.content }} {% endfor %}"


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
    save_vision_tower(folder / "towers" / "dinov2-small", "dinov2")
    save_language_model(folder / "towers" / "smollm2-135m-instruct", "llama", max_position_embeddings=512)
    for name in ("checkpoints/embedded", "runs/mine", "runs/chat"):
        write_captioner(folder / name)
    write_vector_captioner(folder / "runs" / "vectors")
    (folder / "runs" / "mine" / "metrics.jsonl").write_text('{"step": 1, "loss": 2.0}\n')
    for name in ("photo.jpg", "a.jpg", "b.jpg", "photos/1.jpg", "photos/2.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        picture().save(folder / name)
    write_corpus(folder / "mine")
    write_files(folder, RIGHT, REFERENCES)
    (folder / "references.json").rename(folder / "captions_val2014.json")
    return folder


def write_captioner(folder: Path) -> None:
    save_checkpoint(folder, pictures=0)
    config = tiny_config(
        "dinov2", "llama", image_tokens="patches", image_grid=2, text_config={"max_position_embeddings": 512}
    )
    model = tiny_model(
        "dinov2", "llama", image_tokens="patches", image_grid=2, text_config={"max_position_embeddings": 512}
    )
    model.generation_config.update(max_new_tokens=8, do_sample=False)
    model.save_pretrained(folder, full=True)
    processor = tiny_processor(config)
    if folder.name == "chat":
        processor.chat_template, processor.prompt, processor.chat = CHAT_TEMPLATE, "Describe the picture.", True
    processor.save_pretrained(folder)

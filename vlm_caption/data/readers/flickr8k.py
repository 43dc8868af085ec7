"""Flickr8k and Flickr30k as their authors gave them out.

Flickr8k: `Flickr8k.token.txt`, a list of names for each split, a folder of photos. Flickr30k: `results.csv`, with `|`
between the fields; its own file of tokens is read like Flickr8k's.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from ...core.files import is_file, is_folder
from ...core.text import first_line, is_utf8, preview, read_lines
from ..records import PHOTO_FOLDERS, ImageFolder, Problem, Record, Source, the_one
from .table import is_results

TOKEN_FILE = "Flickr8k.token.txt"
RESULTS_FILE = "results.csv"

_TOKEN_FILES = (TOKEN_FILE, "results_20130124.token")
_LISTS = {split: f"Flickr_8k.{split}Images.txt" for split in ("train", "dev", "test")}
_TOKEN_LINE = re.compile(r"([^\t]+)#\d+\t(.*)", re.DOTALL)

# Row 20,001 of Flickr30k's results.csv lacks its second separator: "2199200615.jpg| 4   A dog runs across the grass ."
_NUMBER_AND_CAPTION = re.compile(r"\s*\d+(?:\s*\||\s+)(.*)", re.DOTALL)


def find_tokens(path: Path) -> list[Path]:
    """Returns the file of tokens that `path` is or holds."""
    if is_folder(path):
        return [path / name for name in _TOKEN_FILES if is_file(path / name)]
    is_text = path.suffix.lower() in (".txt", ".token")
    return [path] if is_text and _TOKEN_LINE.match(first_line(path)) else []


def list_token_files(source: Source) -> list[Path]:
    """Returns the file of tokens and the lists of splits beside it."""
    tokens = find_tokens(source.path)
    return tokens + [path for file in tokens for name in _LISTS.values() if is_file(path := file.parent / name)]


def read_tokens(source: Source) -> Iterator[Record | Problem]:
    """Yields the images of each split's list, in its order, with their captions; without lists, those of the tokens.

    Images that no list names are passed over.

    Raises:
        DataError: A file cannot be read, or the photos are not there.
    """
    tokens = the_one(find_tokens(source.path), source.path, f"file of tokens ({' or '.join(_TOKEN_FILES)})")
    folder = ImageFolder(source, [tokens.parent / name for name in PHOTO_FOLDERS] + [tokens.parent])
    captions: dict[str, list[str]] = {}
    problems: list[Problem] = []
    for number, line in read_lines(tokens, "surrogateescape"):
        if not line.strip():
            continue
        match = _TOKEN_LINE.fullmatch(line)
        if not is_utf8(line):
            problems.append(Problem(str(tokens), f"the file is not UTF-8 (line {number}): save it as UTF-8"))
        elif match:
            captions.setdefault(match[1], []).append(match[2])
        else:
            reason = f"expected NAME.jpg#K, a tab and a caption, found {preview(line.strip())}"
            problems.append(Problem(f"{tokens}, line {number}", reason))
    yield from problems

    stripped = {name.strip(): name for name in captions}
    lists = {split: tokens.parent / name for split, name in _LISTS.items() if is_file(tokens.parent / name)}
    for split, path in lists.items():
        for number, line in read_lines(path):
            name = line.rstrip("\r\n")
            name = name if name in captions else stripped.get(name.strip(), "")
            if name:
                yield folder.record(name, captions[name], f"{path}, line {number}", split)
            elif line.strip():
                reason = f"the image {line.strip()} has no captions in {tokens.name}"
                yield Problem(f"{path}, line {number}", reason, split=split)
    if not lists:
        for name, texts in captions.items():
            yield folder.record(name, texts, str(tokens))
    folder.check()


def find_results(path: Path) -> list[Path]:
    """Returns the `results.csv` of Flickr30k that `path` is or holds, known by the bars in its first line."""
    file = path / RESULTS_FILE if is_folder(path) else path
    return [file] if file.suffix.lower() == ".csv" and is_results(first_line(file)) else []


def read_results(source: Source) -> Iterator[Record | Problem]:
    """Yields a record for each line of Flickr30k's `results.csv`: image, number and caption with bars between.

    Raises:
        DataError: The file cannot be read, or the photos are not there.
    """
    results = the_one(find_results(source.path), source.path, f"{RESULTS_FILE} with bars (|) between the fields")
    folder = ImageFolder(source, [results.parent / name for name in PHOTO_FOLDERS] + [results.parent])
    for number, line in read_lines(results, "surrogateescape"):
        name, _, rest = line.partition("|")
        if not line.strip() or (number == 1 and rest.strip().lower().startswith("comment_number")):
            continue
        where = f"{results}, line {number}"
        if not is_utf8(line):
            yield Problem(str(results), f"the file is not UTF-8 (line {number}): save it as UTF-8")
        elif name.strip() and (match := _NUMBER_AND_CAPTION.fullmatch(rest)):
            yield folder.record(name, [match[1]], where)
        else:
            yield Problem(where, f"expected NAME.jpg| number| caption, found {preview(line.strip())}")
    folder.check()

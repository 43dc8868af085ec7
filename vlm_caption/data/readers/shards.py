"""Tar shards as `webdataset` and img2dataset write them: the members of a sample follow each other and differ in their
endings, `0001.jpg`, `0001.txt`, `0001.json`.

One pass reads the headers of a shard and its captions; pictures stay where they are and are read by offset. So shards
of any length are shuffled and resumed exactly, and nothing is unpacked.
"""

import json
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ...core.errors import DataError
from ...images.opening import IMAGE_SUFFIXES
from ..places import Place
from ..records import (
    ANSWER_COLUMNS,
    CAPTION_COLUMNS,
    QUESTION_COLUMNS,
    Problem,
    Record,
    Source,
    as_answers,
    as_captions,
    find_split,
    list_subfolders,
    settle_names,
)

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


@dataclass
class _Sample:
    """The members of one sample: its picture, and its texts by their ending."""

    key: str
    picture: tarfile.TarInfo | None = None
    texts: dict[str, bytes] = field(default_factory=dict)
    endings: set[str] = field(default_factory=set)


def find_shards(path: Path) -> list[Path]:
    """The tar that `path` is, or those in a folder and its subfolders, sorted."""
    if path.is_dir():
        files = (file for folder in [path, *list_subfolders(path)] for file in sorted(folder.iterdir()))
    else:
        files = iter([path])
    return [file for file in files if file.name.lower().endswith((".tar", *_COMPRESSED)) and file.is_file()]


def read_shards(source: Source) -> Iterator[Record | Problem]:
    """Yield each sample of the shards that has a picture.

    Its caption is the member `.txt`, or else the field `caption` (or another of `CAPTION_COLUMNS`) of the member
    `.json`, a string or a list. `caption_column` names another ending or field. Shards or their folders whose names
    speak of splits (`train-0000.tar`) are those splits, if all do and there are several. Where questions are read,
    they and their answers are fields of the `.json`.

    Raises:
        DataError: A shard is compressed, damaged or no tar.
    """
    shards = find_shards(source.path)
    if not shards:
        raise DataError(f"{source.path}: it holds no tar shards (.tar)")
    names = [shard.relative_to(source.path).as_posix() if shard != source.path else shard.name for shard in shards]
    splits = [find_split(Path(name).name) or find_split(Path(name).parent.name) for name in names]
    for shard, name, split in zip(shards, names, settle_names(splits), strict=True):
        if shard.name.lower().endswith(_COMPRESSED):
            raise DataError(f"{shard}: pictures in a compressed tar cannot be read in any order: decompress it")
        for sample in _samples(shard, {"txt", "json", _ending(source)}):
            if sample.picture is not None:
                yield _record(sample, sample.picture, shard, name, source, split)


def _record(
    sample: _Sample, picture: tarfile.TarInfo, shard: Path, name: str, source: Source, split: str | None
) -> Record | Problem:
    where = f"{shard}, {picture.name}"
    try:
        found = _find_captions(sample.texts, source)
        questions, captions = _find_answers(sample.texts, source) if source.questions else ([], as_captions(found))
    except ValueError as error:
        return Problem(where, f"its text cannot be read ({error})", split=split)
    if not captions and source.questions:
        return Problem(where, "NAME.json has no question with its answers, or no list of each", split=split)
    if not captions:
        looked_for = source.caption_column or "NAME.txt, or a caption in NAME.json"
        reason = f"it has no caption: looked for {looked_for} and found only {', '.join(sorted(sample.endings))}"
        return Problem(where, reason, split=split)
    member = picture.name.encode(errors="surrogateescape").decode(errors="replace")  # a tar's names may be any bytes
    place = Place(str(shard), member, picture.offset_data, picture.size)
    return Record(str(place), tuple(captions), f"{name}/{member}", where, split, tuple(questions))


def _ending(source: Source) -> str:
    """The ending of the members that are captions."""
    return (source.caption_column or "txt").lower().removeprefix(".")


def _find_captions(texts: dict[str, bytes], source: Source) -> object:
    """What the texts hold in place of a caption.

    Raises:
        ValueError: It is not UTF-8, or not JSON.
    """
    ending = _ending(source)
    if ending in texts and ending != "json":
        return texts[ending].decode("utf-8-sig")
    values = json.loads(texts.get("json", b"null"))
    if not isinstance(values, dict):
        return None
    return next(
        (
            values[column]
            for column in (CAPTION_COLUMNS if source.caption_column is None else [source.caption_column])
            if column in values
        ),
        None,
    )


def _find_answers(texts: dict[str, bytes], source: Source) -> tuple[list[str], list[str]]:
    """The questions and answers in the JSON of a sample."""
    values = json.loads(texts.get("json", b"null"))
    if not isinstance(values, dict):
        return [], []
    question, answers = (
        next((values[column] for column in ([given] if given else names) if column in values), None)
        for given, names in ((source.question_column, QUESTION_COLUMNS), (source.caption_column, ANSWER_COLUMNS))
    )
    return as_answers(question, answers)


def _samples(shard: Path, text_endings: set[str]) -> Iterator[_Sample]:
    """Yield the samples of a tar in order: a sample's name is a member's up to the first dot behind its folders."""
    sample = _Sample("")
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # ty: ignore[missing-attribute] - else it would remember all of them
                if not member.isreg() or member.issparse():
                    continue
                folder, slash, file = member.name.rpartition("/")
                stem, _, ending = file.partition(".")
                ending = ending.lower()
                if not stem:
                    continue
                if (key := f"{folder}{slash}{stem}") != sample.key or ending in sample.endings:
                    yield sample
                    sample = _Sample(key)
                sample.endings.add(ending)
                if f".{ending}" in IMAGE_SUFFIXES:
                    sample.picture = sample.picture or member
                elif ending in text_endings and (content := tar.extractfile(member)) is not None:
                    sample.texts[ending] = content.read()
        yield sample
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{shard}: the tar is damaged or none ({error})") from error

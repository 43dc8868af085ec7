"""Tar shards as `webdataset` and img2dataset write them: the members of a sample follow each other and differ in their
endings, `0001.jpg`, `0001.txt`, `0001.json`.

One pass reads the headers of a shard and its captions; pictures stay where they are and are read by offset. So shards
of any length are shuffled and resumed exactly, and nothing is unpacked.
"""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from ...core.errors import DataError
from ...core.files import is_file, is_folder
from ...core.untrusted import load_json
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
    first_of,
    list_subfolders,
    settle_names,
)

# The longest text of a sample, in bytes.
_LONGEST_TEXT = 1 << 24

_COMPRESSED = (".tar.gz", ".tgz", ".tar.bz2", ".tbz2", ".tar.xz", ".txz", ".tar.zst")


@dataclass
class _Sample:
    """The members of one sample.

    Attributes:
        key: Its name.
        picture: The member with its picture.
        texts: Its texts, by their ending; None for one that is too long.
        endings: The endings of all members.
        strays: Pictures whose ending has a dot of its own: `v2.jpg` of `photo.v2.jpg`.
    """

    key: str
    picture: tarfile.TarInfo | None = None
    texts: dict[str, bytes | None] = field(default_factory=dict)
    endings: set[str] = field(default_factory=set)
    strays: list[tarfile.TarInfo] = field(default_factory=list)


def find_shards(path: Path) -> list[Path]:
    """Returns the tar that `path` is, or those in a folder and its subfolders, sorted."""
    if is_folder(path):
        files = (file for folder in [path, *list_subfolders(path)] for file in sorted(folder.iterdir()))
    else:
        files = iter([path])
    return [file for file in files if file.name.lower().endswith((".tar", *_COMPRESSED)) and is_file(file)]


def read_shards(source: Source) -> Iterator[Record | Problem]:
    """Yields each sample of the shards that has a picture.

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
        names = _Names(shard, name)
        for sample in _samples(shard, {"txt", "json", _ending(source)}):
            if sample.picture is not None:
                record = _record(sample, sample.picture, shard, source, split)
                yield names.tell_apart(record, sample.picture) if isinstance(record, Record) else record
            for stray in sample.strays:
                reason = "it has no caption of its own name: rename the members so that no name has a dot inside"
                yield Problem(f"{shard}, {_as_text(stray.name)}", reason, split=split)


class _Names:
    """Gives the pictures of a shard their keys.

    A name may be there twice. Two members with the same bytes are one image, and others are two.
    """

    def __init__(self, shard: Path, name: str) -> None:
        self._shard, self._name = shard, name
        self._first: dict[int, tuple[int, int]] = {}  # a hash of a name -> where its first picture is

    def tell_apart(self, record: Record, picture: tarfile.TarInfo) -> Record:
        """Returns the record of a picture with its key, and with a name that no other picture has."""
        key = self.key(picture)
        if key.endswith(suffix := f"@{picture.offset_data}"):
            place = Place.parse(record.image)
            record = replace(record, image=str(replace(place, name=f"{place.name}{suffix}")))
        return replace(record, key=key)

    def key(self, picture: tarfile.TarInfo) -> str:
        key = f"{self._name}/{_as_text(picture.name)}"
        place = (picture.offset_data, picture.size)
        digest = int.from_bytes(hashlib.blake2b(key.encode(errors="replace"), digest_size=8).digest())
        first = self._first.setdefault(digest, place)
        if first == place or (first[1] == place[1] and self._read(first) == self._read(place)):
            return key
        return f"{key}@{picture.offset_data}"

    def _read(self, place: tuple[int, int]) -> bytes:
        offset, size = place
        with self._shard.open("rb") as file:
            file.seek(offset)
            return hashlib.sha256(file.read(size)).digest()


def _as_text(member: str) -> str:
    """Returns a member's name as text, because the names in a tar may be any bytes."""
    return member.encode(errors="surrogateescape").decode(errors="replace")


def _record(
    sample: _Sample, picture: tarfile.TarInfo, shard: Path, source: Source, split: str | None
) -> Record | Problem:
    where = f"{shard}, {_as_text(picture.name)}"
    if None in sample.texts.values():
        return Problem(where, f"its text has more than {_LONGEST_TEXT:,} bytes", split=split)
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
    place = Place(str(shard), _as_text(picture.name), picture.offset_data, picture.size)
    return Record(str(place), tuple(captions), "", where, split, tuple(questions))


def _ending(source: Source) -> str:
    """Returns the ending of the members that are captions."""
    return (source.caption_column or "txt").lower().removeprefix(".")


def _find_captions(texts: dict[str, bytes | None], source: Source) -> object:
    """Returns what the texts hold in place of a caption.

    Raises:
        ValueError: It is not UTF-8, or not JSON.
    """
    ending = _ending(source)
    if ending != "json" and (text := texts.get(ending)) is not None:
        return text.decode("utf-8-sig")
    values = load_json(texts.get("json") or b"null", "its JSON")
    if not isinstance(values, dict):
        return None
    return first_of(values, CAPTION_COLUMNS if source.caption_column is None else [source.caption_column])


def _find_answers(texts: dict[str, bytes | None], source: Source) -> tuple[list[str], list[str]]:
    """Returns the questions and answers in the JSON of a sample."""
    values = load_json(texts.get("json") or b"null", "its JSON")
    if not isinstance(values, dict):
        return [], []
    question, answers = (
        first_of(values, [given] if given else names)
        for given, names in ((source.question_column, QUESTION_COLUMNS), (source.caption_column, ANSWER_COLUMNS))
    )
    return as_answers(question, answers)


def _samples(shard: Path, text_endings: set[str]) -> Iterator[_Sample]:
    """Yields the samples of a tar in order.

    The name of a sample is a member's up to the first dot behind its folders. In a tar of files that nobody named for
    that (`photo.v2.jpg`, `photo.v2.txt`), it is the name up to the last dot where picture and caption then match.
    """
    sample = _Sample("")
    for member in _members(shard):
        folder, slash, file = member.name.rpartition("/")
        stem, _, ending = file.partition(".")
        ending = ending.lower()
        if not stem:
            continue
        if (key := f"{folder}{slash}{stem}") != sample.key or ending in sample.endings:
            yield from _split_at_last_dot(sample, text_endings)
            sample = _Sample(key)
        sample.endings.add(ending)
        if f".{ending}" in IMAGE_SUFFIXES:
            sample.picture = sample.picture or member
        elif f".{ending.rpartition('.')[2]}" in IMAGE_SUFFIXES:
            sample.strays.append(member)
        elif ending in text_endings or ending.rpartition(".")[2] in text_endings:
            sample.texts[ending] = None if member.size > _LONGEST_TEXT else _read(shard, member)
    yield from _split_at_last_dot(sample, text_endings)


def _split_at_last_dot(sample: _Sample, text_endings: set[str]) -> Iterator[_Sample]:
    """Yields a sample, and one for each of its strays that has a text of its own name."""
    strays, sample.strays = sample.strays, []
    for stray in strays:
        middle, _, ending = stray.name.rpartition("/")[2].partition(".")[2].lower().rpartition(".")
        texts = {
            name.rpartition(".")[2]: text for name, text in sample.texts.items() if name.rpartition(".")[0] == middle
        }
        if texts:
            yield _Sample(f"{sample.key}.{middle}", stray, texts, {ending, *texts})
        elif sample.picture is None:  # a sample with a picture may have more of them: masks, other views
            sample.strays.append(stray)
    sample.texts = {name: text for name, text in sample.texts.items() if name in text_endings}
    yield sample


def _members(shard: Path) -> Iterator[tarfile.TarInfo]:
    """Yields the regular files in a tar.

    Raises:
        DataError: The tar is damaged.
    """
    try:
        with tarfile.open(shard, "r:") as tar:
            while (member := tar.next()) is not None:
                tar.members = []  # ty: ignore[missing-attribute] - else it would remember all of them
                if member.isreg() and not member.issparse():
                    yield member
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise DataError(f"{shard}: the tar is damaged or none ({error})") from error


def _read(shard: Path, member: tarfile.TarInfo) -> bytes:
    with shard.open("rb") as file:
        file.seek(member.offset_data)
        return file.read(member.size)

"""Records gathered into Arrow files on disk: one row an image, one file a split.

The records of one image may be far apart, and there may be millions: they are gathered in an SQLite file, not in
memory. What is written is named by a fingerprint of all that it depends on, so it is never stale; it is whole or not
there. One of several processes writes it while the others wait. A folder that has been damaged since is written anew.
"""

import hashlib
import itertools
import json
import logging
import os
import shutil
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Any, BinaryIO, TextIO

import pyarrow as pa
import xxhash
from datasets import Dataset, Features, List, Value
from filelock import FileLock

from ..core.cache import cache_dir
from ..core.errors import DataError
from ..core.files import move_folder
from ..core.untrusted import load_json
from .captions import Cleaning, clean_question, count_words
from .places import Place
from .records import Format, Problem, Record, Source

logger = logging.getLogger(__name__)

FEATURES = Features({"image": Value("string"), "captions": List(Value("string"))})
ASKED_FEATURES = Features({**FEATURES, "questions": List(Value("string"))})

# Raise it whenever a reader or this file gives other rows for the same corpus.
_READER_VERSION = 7

_REPORT = "report.json"
_PROBLEMS = "problems.jsonl"
_ROWS_A_BATCH = 1000
_SECONDS_A_LINE = 10

_TABLES = """
CREATE TABLE images (id INTEGER PRIMARY KEY, key BLOB UNIQUE, image TEXT, split TEXT, place TEXT, rank REAL);
CREATE TABLE captions (image INTEGER, text TEXT, question TEXT);
"""


@dataclass(frozen=True, slots=True)
class Stored:
    """A corpus as it was written.

    Attributes:
        directory: Where.
        splits: The Arrow file of each split.
        dropped: How many captions and images were left out, by the reason in words.
    """

    directory: Path
    splits: dict[str, str]
    dropped: dict[str, int]

    def open(self, split: str) -> Dataset:
        """Returns a split, memory-mapped."""
        with FileLock(f"{self.directory}.lock"):  # another process may be renewing it
            return Dataset.from_file(str(self.directory / self.splits[split]))

    @property
    def problems_file(self) -> Path:
        """The file of JSON lines that lists what was wrong with single records."""
        return self.directory / _PROBLEMS

    def problems(self) -> Iterator[Problem]:
        """Yields what was wrong with single records, in their order."""
        with self.problems_file.open(encoding="utf-8") as file:
            for line in file:
                yield Problem(**json.loads(line))


def store(
    source: Source, name: str, corpus_format: Format, cleaning: Cleaning, dev_share: float, renew: bool = False
) -> tuple[Stored, bool]:
    """Finds a corpus in the cache, or reads it whole and puts it there.

    Args:
        source, name, corpus_format: What to read, and how.
        cleaning: For every caption.
        dev_share: The share of images to cut off as "dev", where the corpus has no splits.
        renew: Whether to read it even if it is in the cache.

    Returns:
        The corpus, and whether it was there.

    Raises:
        DataError: The corpus cannot be read, or the cache not written.
    """
    root = cache_dir() / "datasets"
    target = root / _fingerprint(source, name, corpus_format, cleaning, dev_share)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{target}.lock"):
            if not renew and (stored := _open(target)) is not None:
                return stored, True
            with tempfile.TemporaryDirectory(dir=root, prefix=f".{target.name}-") as scratch:
                built = Path(scratch, "built")
                built.mkdir()
                with closing(sqlite3.connect(Path(scratch, "records.sqlite"), isolation_level=None)) as rows:
                    records = _tell(corpus_format.read(source), source)
                    pictures = Path(os.path.abspath(target), f"{source.path.name:.100}.pictures")  # noqa: PTH100
                    _write(rows, records, cleaning, dev_share, built, pictures, source)
                shutil.rmtree(target, ignore_errors=True)
                move_folder(built, target)
            stored = _open(target)
            if stored is None:
                raise OSError("what was written is not there any more")
            return stored, False
    except (OSError, sqlite3.Error) as error:
        raise DataError(
            f"{source.path}: it could not be read into {root} ({error}): the environment variable VLM_CAPTION_CACHE "
            "chooses another folder"
        ) from error


def _fingerprint(source: Source, name: str, corpus_format: Format, cleaning: Cleaning, dev_share: float) -> str:
    digest = hashlib.sha256()
    # Paths as given are in the rows, and mean another file in another working directory.
    places = [os.path.abspath(path) for path in (source.path, source.images) if path is not None]  # noqa: PTH100
    settings = [_READER_VERSION, name, asdict(source), places, asdict(cleaning), dev_share]
    digest.update(json.dumps(settings, default=str).encode())
    for path in corpus_format.find(source.path) if corpus_format.files is None else corpus_format.files(source):
        state = path.stat()
        digest.update(os.fsencode(path) + f"\0{state.st_size}\0{state.st_mtime_ns}\0".encode())
    return f"{name}-{digest.hexdigest()[:32]}"


def _open(directory: Path) -> Stored | None:
    """Returns the corpus in a folder; None if it is not there, or not as it was written."""
    if not directory.is_dir():
        return None
    try:
        report = load_json((directory / _REPORT).read_bytes(), str(directory / _REPORT))
        # datasets puts its own files here, of selected rows.
        if report["files"] == {name: _describe_file(directory / name) for name in report["files"]}:
            if report["archives"] != {path: _state(path) for path in report["archives"]}:
                return None  # packed again, with the pictures in other places
            return Stored(directory, report["splits"], report["dropped"])
    except (OSError, DataError, KeyError, TypeError):
        pass
    logger.warning("%s: the cached corpus is damaged: it is read anew", directory)
    return None


def _state(path: str) -> list[int] | None:
    """Returns the size of a file and when it was changed; None if it is not there."""
    try:
        status = Path(path).stat()
    except OSError:
        return None
    return [status.st_size, status.st_mtime_ns]


def _describe_files(directory: Path) -> dict[str, list[Any]]:
    """Describes each file in the folder beside the report."""
    return {path.name: _describe_file(path) for path in directory.iterdir() if path.name != _REPORT}


def _describe_file(path: Path) -> list[Any]:
    """Returns the size of a file, and a hash of it unless it holds pictures, which may be large."""
    size = path.stat().st_size
    if path.suffix == ".pictures":
        return [size]
    with path.open("rb") as file:
        return [size, hashlib.file_digest(file, xxhash.xxh3_64).hexdigest()]


def _write(
    rows: sqlite3.Connection,
    records: Iterable[Record | Problem],
    cleaning: Cleaning,
    dev_share: float,
    target: Path,
    pictures: Path,
    source: Source,
) -> None:
    """Writes the corpus into the folder `target`.

    Args:
        rows: An empty database.
        records, cleaning, dev_share, source: See `store`.
        target: The folder.
        pictures: The final name of the file for pictures that have none.
    """
    rows.execute("PRAGMA journal_mode = OFF")
    rows.execute("PRAGMA synchronous = OFF")
    rows.execute("PRAGMA cache_size = -65536")  # kiB
    rows.executescript(_TABLES)
    archives: dict[str, list[int] | None] = {}
    rows.execute("BEGIN")
    with (
        (target / _PROBLEMS).open("w", encoding="utf-8") as file,
        (target / pictures.name).open("wb") as contents,
    ):
        records = _note_archives(records, archives)
        dropped = _gather(_keep_pictures(records, contents, pictures, source.path), rows, cleaning, file)
        _settle_splits(rows, dev_share, file)
    if not (target / pictures.name).stat().st_size:
        (target / pictures.name).unlink()
    splits = [split for (split,) in rows.execute("SELECT split FROM images GROUP BY split ORDER BY min(id)")]
    files = {split: f"{number}.arrow" for number, split in enumerate(splits)}
    for split, name in files.items():
        _write_split(rows, split, target / name, source.questions)
    report = {"splits": files, "dropped": dropped, "archives": archives, "files": _describe_files(target)}
    (target / _REPORT).write_text(json.dumps(report), encoding="utf-8")


def _tell(records: Iterable[Record | Problem], source: Source) -> Iterator[Record | Problem]:
    """Passes the records on, and says now and then how many they are.

    Raises:
        DataError: There is none.
    """
    told = time.monotonic()
    count = 0
    for count, record in enumerate(records, start=1):
        yield record
        if time.monotonic() - told > _SECONDS_A_LINE:
            told = time.monotonic()
            logger.info("%s: read %s records", source.path, f"{count:,}")
    if not count:
        raise DataError(f"{source.path}: it holds no pictures with captions")


def _note_archives(
    records: Iterable[Record | Problem], archives: dict[str, list[int] | None]
) -> Iterator[Record | Problem]:
    """Passes the records on, and notes the state of each zip archive that holds pictures of theirs."""
    for record in records:
        if isinstance(record, Record) and ".zip#" in record.image.lower():
            path = Place.parse(record.image).path
            if path not in archives:
                archives[path] = _state(path)
        yield record


def _keep_pictures(
    records: Iterable[Record | Problem], contents: BinaryIO, path: Path, corpus: Path
) -> Iterator[Record | Problem]:
    """Writes the pictures that records bring along into a file, and yields the records with their places in it.

    Args:
        records: The records.
        contents: The file.
        path: Its final name.
        corpus: The corpus, whose files name the pictures.
    """
    offsets: dict[bytes, int] = {}
    for record in records:
        if isinstance(record, Record) and record.content is not None:
            key = hashlib.sha256(record.key.encode()).digest()[:16]
            if key not in offsets:
                offsets[key] = contents.tell()
                contents.write(record.content)
            within = record.where.removeprefix(f"{corpus}/")
            name = record.where.rpartition(", ")[2] if within == record.where else within
            place = Place(str(path), name, offsets[key], len(record.content))
            record = replace(record, image=str(place), content=None)
        yield record


def _gather(
    records: Iterable[Record | Problem], rows: sqlite3.Connection, cleaning: Cleaning, problems: TextIO
) -> dict[str, int]:
    """Fills the tables, and counts what the cleaning leaves out, by the reason in words."""
    short = long = 0

    for record in records:
        if isinstance(record, Problem):
            _put(problems, record)
            continue
        try:
            "".join((record.image, record.key, record.where, record.split or "")).encode()
        except UnicodeEncodeError:
            reason = "a name is not UTF-8: rename the picture, its folder, or its split"
            _put(problems, Problem(record.where, reason))
            continue
        captions = []
        for text, question in itertools.zip_longest(record.captions, map(clean_question, record.questions)):
            caption = cleaning.clean(text)
            words = count_words(caption)
            if cleaning.min_words is not None and words < cleaning.min_words:
                short += 1
            elif cleaning.max_words is not None and words > cleaning.max_words:
                long += 1
            elif reason := _fault(caption) or (_fault(question, "question") if question is not None else None):
                _put(problems, Problem(record.where, reason, record.image, record.split))
            else:
                captions.append((caption, question))
        key = hashlib.sha256(record.key.encode()).digest()
        known = rows.execute("SELECT id, split FROM images WHERE key = ?", (key,)).fetchone()
        if known is None:
            rank = int.from_bytes(key[:8]) / 2**64
            cursor = rows.execute(
                "INSERT INTO images (key, image, split, place, rank) VALUES (?, ?, ?, ?, ?)",
                (key, record.image, record.split, record.where, rank),
            )
            image = cursor.lastrowid
        elif known[1] == record.split:
            image = known[0]
        else:
            reason = (
                f"the image {record.key} is in the split {record.split!r} here and in {known[1]!r} above: keep all "
                "its rows in one split"
            )
            _put(problems, Problem(record.where, reason, record.image))
            continue
        rows.executemany("INSERT INTO captions VALUES (?, ?, ?)", [(image, *caption) for caption in captions])
    bare = rows.execute("DELETE FROM images WHERE id NOT IN (SELECT image FROM captions)").rowcount
    return {"captions too short": short, "captions too long": long, "images without captions": bare}


def _fault(text: str, what: str = "caption") -> str | None:
    if not text and what == "question":
        return "a question is empty: fill it or remove it"
    if not text:
        return "a caption is empty: remove it, or leave such captions out with data.min_words 1"
    try:
        text.encode()
    except UnicodeEncodeError:
        return f"a {what} holds half a character (a lone surrogate): {text!r:.80}"
    return None


def _settle_splits(rows: sqlite3.Connection, dev_share: float, problems: TextIO) -> None:
    """Makes sure that every image has a split: its own, or one by the hash of its key.

    The choice holds on every machine and when images are added. With two images or more, each split has one.
    """
    splits = {split for (split,) in rows.execute("SELECT DISTINCT split FROM images")}
    if None in splits and len(splits) > 1:
        strays = rows.execute("SELECT place, image FROM images WHERE split IS NULL ORDER BY id")
        for where, image in strays:
            _put(problems, Problem(where, "the column 'split' is empty here and not elsewhere: fill it", image))
        rows.execute("DELETE FROM images WHERE split IS NULL")
    elif splits == {None} and dev_share > 0:
        rows.execute("UPDATE images SET split = CASE WHEN rank < ? THEN 'dev' ELSE 'train' END", (dev_share,))
        (count,) = rows.execute("SELECT count(*) FROM images").fetchone()
        for split, order in (("dev", "ASC"), ("train", "DESC")):
            empty = not rows.execute("SELECT count(*) FROM images WHERE split = ?", (split,)).fetchone()[0]
            if empty and (count > 1 or split == "train"):
                rows.execute(
                    f"UPDATE images SET split = ? WHERE id = (SELECT id FROM images ORDER BY rank {order} LIMIT 1)",
                    (split,),
                )
    else:
        rows.execute("UPDATE images SET split = 'train' WHERE split IS NULL")


def _write_split(rows: sqlite3.Connection, split: str, path: Path, questions: bool) -> None:
    found = rows.execute(
        "SELECT images.id, images.image, captions.text, captions.question "
        "FROM images JOIN captions ON captions.image = images.id "
        "WHERE images.split = ? ORDER BY images.id, captions.rowid",
        (split,),
    )
    schema = (ASKED_FEATURES if questions else FEATURES).arrow_schema
    with pa.ipc.new_stream(str(path), schema) as writer:
        batch: list[dict] = []
        for (_, image), entries in groupby(found, key=lambda entry: entry[:2]):
            texts = [entry[2:] for entry in entries]
            row = {"image": image, "captions": [caption for caption, _ in texts]}
            batch.append(row | ({"questions": [question for _, question in texts]} if questions else {}))
            if len(batch) == _ROWS_A_BATCH:
                writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))
                batch = []
        writer.write_batch(pa.RecordBatch.from_pylist(batch, schema))


def _put(file: TextIO, problem: Problem) -> None:
    file.write(json.dumps(asdict(problem)) + "\n")

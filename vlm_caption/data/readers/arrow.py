"""Tables of Hugging Face `datasets`: a `save_to_disk` folder, Parquet files, a dataset of the Hub.

Their Arrow files are memory-mapped and not compressed, so a picture in one of them is a stretch of the file. Parquet
is compressed: `datasets` turns it into Arrow files once, in the cache.
"""

import contextlib
import glob
import hashlib
import itertools
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import datasets.config
import huggingface_hub.constants
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as kinds
from datasets import Dataset, DatasetDict

from ...core.cache import cache_dir
from ...core.console import first_line_of
from ...core.errors import DataError, ImageError
from ...core.files import is_file, is_folder
from ...core.hub_ids import is_hub_id
from ...core.text import preview
from ..places import Place, digest_base64, find_base64
from ..records import (
    IMAGE_COLUMNS,
    SPLIT_COLUMN,
    ImageFolder,
    Problem,
    Record,
    Source,
    as_answers,
    as_captions,
    describe_unpaired,
    find_column,
    find_split,
    find_texts,
    join_turns,
    list_subfolders,
    settle_names,
)

_SAVED_NAMES = ("dataset_dict.json", "state.json")


def find_dataset(path: Path) -> list[Path]:
    """Returns what makes a folder one of `save_to_disk` or of Parquet files; or a Hub id that is no misspelt path."""
    if not is_folder(path):
        is_id = not is_file(path) and is_hub_id(str(path)) and not is_folder(path.parent)
        return [path] if is_id else []
    saved = [path / name for name in _SAVED_NAMES if is_file(path / name)]
    return saved or _find_parquet(path)


def list_dataset_files(source: Source) -> list[Path]:
    """Returns all files with rows in them; a Hub dataset is fetched for it."""
    if not any(is_file(source.path / name) for name in _SAVED_NAMES) and is_folder(source.path):
        return _find_parquet(source.path)
    return [Path(file["filename"]) for dataset in _load(source).values() for file in dataset.cache_files]


def read_dataset(source: Source) -> Iterator[Record | Problem]:
    """Yields a record for each row, with the pictures where the Arrow files have them.

    The image column is the one of the type Image, or found by name as in a table; it holds bytes, base64 or paths, or
    lists of one picture. Captions are strings or lists of strings. Columns `images` and `texts`, with lists of
    `{"user": …, "assistant": …}`, are conversations, whose first answer is the caption. A column `split` counts more
    than the dataset's own splits.

    Raises:
        DataError: There is no such dataset, it cannot be read, or it lacks a column.
    """
    # `datasets` unpacks pictures of the Hub into its caches, and names them there by absolute paths.
    caches = (huggingface_hub.constants.HF_HUB_CACHE, datasets.config.HF_DATASETS_CACHE)
    trusted = [] if is_folder(source.path) else list(map(Path, caches))
    folder = ImageFolder(source, [source.path], trusted=trusted)
    if is_folder(source.path) and (files := _find_parquet(source.path)):
        splits = settle_names([find_split(file.name) or find_split(file.parent.name) for file in files])
        for split in dict.fromkeys(splits):
            chosen = [file for file, other in zip(files, splits, strict=True) if other == split]
            yield from read_parquet(chosen, source, folder, split)
    else:
        loaded = _load(source)
        for split, dataset in zip(settle_names(list(loaded)), loaded.values(), strict=True):
            yield from _read_rows(dataset, source, folder, split, str(source.path))
    folder.check()


def read_parquet(
    files: Sequence[Path], source: Source, folder: ImageFolder, split: str | None
) -> Iterator[Record | Problem]:
    """Yields a record for each row of Parquet files; see `read_dataset`.

    Raises:
        DataError: A file is not Parquet, or lacks a column.
    """
    for file in files:
        yield from _read_rows(open_parquet(file), source, folder, split, str(file))


def open_parquet(file: Path) -> Dataset:
    """Opens a Parquet file, unpacked into Arrow files in the cache. Damaged ones there are made anew.

    Raises:
        DataError: It is not Parquet.
    """
    directory = cache_dir() / "datasets" / "parquet"

    def unpack(mode: str) -> Dataset:
        # The file's name is taken for a pattern.
        return datasets.load_dataset(
            "parquet",
            data_files=[glob.escape(str(file))],
            cache_dir=str(directory),
            split="train",
            download_mode=mode,
        )

    def load() -> Dataset:
        with contextlib.suppress(OSError, pa.ArrowException):
            dataset = unpack("reuse_dataset_if_exists")
            if all(_is_whole(Path(entry["filename"])) for entry in dataset.cache_files):
                return dataset
        return unpack("force_redownload")

    return _call(load, f"{file}: the Parquet file cannot be read")


def _is_whole(file: Path) -> bool:
    """Returns whether an Arrow file ends with the mark of the stream's end, as a writer ends it."""
    with file.open("rb") as content:
        content.seek(-min(8, file.stat().st_size), 2)
        return content.read() == b"\xff\xff\xff\xff\0\0\0\0"


def _find_parquet(path: Path) -> list[Path]:
    """Returns the Parquet files in a folder or its `data`, `train`, … as a clone of a Hub dataset has them."""
    folders = [path, *(child for child in list_subfolders(path) if child.name == "data" or find_split(child.name))]
    files = [file for folder in folders for file in sorted(folder.glob("*.parquet"))]
    return [file for file in files if file.stem not in ("metadata", "captions")]  # those are tables


def _load(source: Source) -> dict[str | None, Dataset]:
    """Returns the dataset's tables by split; None for a dataset without splits."""
    if is_folder(source.path):
        loaded = _call(lambda: datasets.load_from_disk(str(source.path)), f"{source.path}: the dataset cannot be read")
    else:
        loaded = _call(
            lambda: datasets.load_dataset(str(source.path), source.subset),
            f"{source.path}: there is no such file or folder, and fetching the dataset from the Hub failed",
        )
    return (
        {str(split): table for split, table in loaded.items()} if isinstance(loaded, DatasetDict) else {None: loaded}
    )


def _call(load: Callable[[], Any], complaint: str) -> Any:
    try:
        with _quiet():
            return load()
    except Exception as error:  # datasets lets through the errors of pyarrow, fsspec, json and the Hub's client
        raise DataError(f"{complaint} ({first_line_of(error)})") from error


@contextlib.contextmanager
def _quiet() -> Generator[None]:
    """Suppresses the progress bars of `datasets` unless stderr is a terminal."""
    was_on = datasets.is_progress_bar_enabled()
    if was_on and not sys.stderr.isatty():
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        if was_on:
            datasets.enable_progress_bars()


@dataclass(frozen=True, slots=True)
class _Picture:
    """Where a row's picture is; `digest` is the SHA-256 of its bytes, as hex."""

    place: Place
    digest: str


def _read_rows(
    dataset: Dataset, source: Source, folder: ImageFolder, split: str | None, name: str
) -> Iterator[Record | Problem]:
    of_type_image = [column for column, feature in dataset.features.items() if isinstance(feature, datasets.Image)]
    given = source.image_column or (of_type_image[0] if len(of_type_image) == 1 else None)
    columns = dataset.column_names
    image_column = find_column(columns, given, (*IMAGE_COLUMNS, "images"), "image", name)
    is_dialogue = source.caption_column is None and _is_dialogue(dataset)
    caption_column, question_column = ("texts", None) if is_dialogue else find_texts(columns, source, name)
    number = 0
    for file in dataset.cache_files:
        for buffer, batch in read_batches(Path(file["filename"]), name):
            pictures = _pictures(batch.column(image_column), buffer, file["filename"])
            texts = _as_list(batch.column(caption_column))
            asked = [None] * len(texts) if question_column is None else _as_list(batch.column(question_column))
            splits = _as_list(batch.column(SPLIT_COLUMN)) if SPLIT_COLUMN in columns else [split] * len(texts)
            for picture, text, question, row_split in zip(pictures, texts, asked, splits, strict=True):
                number += 1
                where = f"{name}, row {number}"
                if row_split is not None and (not isinstance(row_split, str) or not row_split.strip()):
                    reason = f"the column {SPLIT_COLUMN!r} must hold text, and holds {preview(row_split)}"
                    yield Problem(where, reason)
                    continue
                if is_dialogue:
                    found = _read_dialogue(text, source.questions)
                else:
                    found = _read_texts(text, question, caption_column, question_column)
                if isinstance(found, str):
                    yield Problem(where, found, split=row_split)
                else:
                    yield _record(picture, *found, folder, row_split, where)
    if number != len(dataset):
        raise DataError(f"{name}: it is a selection of the rows in its files: save it again with save_to_disk")


def _is_dialogue(dataset: Dataset) -> bool:
    """Returns whether a dataset has a column `texts` of lists of turns, as nanoVLM's data have."""
    feature = dataset.features.get("texts")
    turns = getattr(feature, "feature", None)
    return isinstance(turns, dict) and {"user", "assistant"} <= turns.keys()


def _read_dialogue(texts: object, all_questions: bool) -> tuple[list[str], list[str]] | str:
    """Returns the questions and answers of a row with turns, or what is wrong with it."""
    turns = texts if isinstance(texts, list) else []
    pairs = [(turn.get("user"), turn.get("assistant")) for turn in turns if isinstance(turn, dict)]
    pairs = pairs if all_questions else pairs[:1]
    questions, answers = as_captions([pair[0] for pair in pairs]), as_captions([pair[1] for pair in pairs])
    if not answers or (all_questions and not questions):
        return f"the column 'texts' must hold turns of user and assistant, and holds {preview(texts)}"
    if not all_questions:
        return [], answers
    turns = [text for pair in zip(questions, answers, strict=True) for text in pair]
    return [join_turns(turns[: 2 * number + 1]) for number in range(len(questions))], answers


def _read_texts(
    texts: object, question: object, caption_column: str, question_column: str | None
) -> tuple[list[str], list[str]] | str:
    """Returns the questions and captions of a row, or what is wrong with it."""
    questions, captions = ([], as_captions(texts)) if question_column is None else as_answers(question, texts)
    if captions:
        return questions, captions
    if question_column is not None:
        return describe_unpaired(question_column, caption_column, question, texts)
    return f"the column {caption_column!r} must hold a caption or a list of captions, and holds {preview(texts)}"


def _record(
    picture: "_Picture | str | None",
    questions: list[str],
    captions: list[str],
    folder: ImageFolder,
    split: str | None,
    where: str,
) -> Record | Problem:
    if picture is None:
        return Problem(where, "there is no picture, or there are several", split=split)
    if isinstance(picture, str):
        record = folder.record(picture, captions, where, split, questions)
        if not picture.startswith("/") or isinstance(record, Problem):
            return record
        try:  # where the Hub's caches are differs between machines, and no key may
            return replace(record, key=hashlib.sha256(Place.parse(record.image).read()).hexdigest())
        except ImageError as error:
            return Problem(where, str(error), record.image, split)
    place = replace(picture.place, name=where.rpartition(", ")[2])
    return Record(str(place), tuple(captions), picture.digest, where, split, tuple(questions))


def read_batches(file: Path, name: str) -> Iterator[tuple[pa.Buffer, pa.RecordBatch]]:
    """Yields the batches of an Arrow file beside the memory map that they lie in."""
    try:
        with pa.memory_map(str(file)) as mapped:
            buffer = mapped.read_buffer()
        for batch in pa.ipc.open_stream(buffer):
            _check(batch)
            yield buffer, batch
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{name}: the Arrow file {file} cannot be read ({error})") from error


def _check(batch: pa.RecordBatch) -> None:
    """Checks a batch's offsets, of which wrong ones would crash the interpreter.

    Raises:
        pa.ArrowException: They are wrong.
    """
    for column in batch.columns:
        try:
            column.validate(full=True)
        except pa.ArrowInvalid as error:
            if "UTF8" not in str(error):  # this is the fault of single rows
                raise


def _as_list(column: pa.Array) -> list[Any]:
    """Returns the values of a column, with None for a value that is not UTF-8."""
    try:
        return column.to_pylist()
    except UnicodeDecodeError:
        return [_value(scalar) for scalar in column]


def _value(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except UnicodeDecodeError:
        return None


def _pictures(column: pa.Array, buffer: pa.Buffer, file: str) -> Iterator[_Picture | str | None]:
    """Yields where each picture of a batch is: in the file itself, at a path, or nowhere."""
    if kinds.is_list(column.type) or kinds.is_large_list(column.type):
        inside = _pictures(column.flatten(), buffer, file)
        for size in pc.list_value_length(column).to_pylist():  # ty: ignore[missing-attribute]
            pictures = list(itertools.islice(inside, size or 0))
            yield pictures[0] if len(pictures) == 1 else None
        return
    if kinds.is_struct(column.type) and {"bytes", "path"} <= set(column.type.names):
        # The type Image: bytes, and the name that they had; or a path alone.
        paths = _as_list(column.field("path"))
        yield from (
            inside or path for inside, path in zip(_pictures(column.field("bytes"), buffer, file), paths, strict=True)
        )
        return
    if kinds.is_null(column.type):
        yield from [None] * len(column)
        return
    is_text = kinds.is_string(column.type) or kinds.is_large_string(column.type)
    if not is_text and not kinds.is_binary(column.type) and not kinds.is_large_binary(column.type):
        raise DataError(f"{file}: the image column is of the type {column.type}: expected pictures, bytes or text")
    _, offsets, values = column.buffers()
    if values is None or values.size == 0:  # there is not one
        yield from [None] * len(column)
        return
    is_large = kinds.is_large_string(column.type) or kinds.is_large_binary(column.type)
    ends = np.frombuffer(offsets, np.int64 if is_large else np.int32)[column.offset :]
    start = values.address - buffer.address
    if not 0 <= start <= buffer.size - values.size:
        raise DataError(f"{file}: the Arrow file is compressed: save it again with save_to_disk")
    for row, is_there in enumerate(column.is_valid().to_pylist()):
        offset = start + int(ends[row])
        content = values[int(ends[row]) : int(ends[row + 1])] if is_there else None
        if not content:
            yield None
        elif not is_text:
            yield _Picture(Place(file, "", offset, content.size), hashlib.sha256(content).hexdigest())
        else:
            text = content.to_pybytes().decode(errors="surrogateescape")
            encoded = find_base64(text)
            if encoded is None:
                yield text.strip()
            else:  # ASCII to its end, and before it
                place = Place(file, "", offset + text.index(encoded), len(encoded), is_base64=True)
                yield _Picture(place, digest_base64(encoded))

"""The formats that corpora come in, and which of them a folder or file is."""

import difflib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from datasets import Dataset

from ..core.errors import DataError
from ..core.files import is_file, is_folder
from .captions import Cleaning
from .corpus import Corpus
from .readers.arrow import find_dataset, list_dataset_files, read_dataset
from .readers.conversations import find_llava, read_llava
from .readers.flickr8k import find_results, find_tokens, list_token_files, read_results, read_tokens
from .readers.json_corpora import (
    find_coco,
    find_karpathy,
    find_pairs,
    find_vqa,
    list_vqa_files,
    read_coco,
    read_karpathy,
    read_pairs,
    read_vqa,
)
from .readers.shards import find_shards, read_shards
from .readers.table import (
    METADATA_NAMES,
    TABLE_NAMES,
    TABLE_SUFFIXES,
    find_metadata,
    find_table,
    list_table_files,
    read_imagefolder,
    read_table,
)
from .readers.text_files import find_text_files, list_text_files, read_text_files
from .records import Format, Problem, Record, Source
from .vectors import VECTORS

_TABLE_SIGN = f"a file that ends in {', '.join(TABLE_SUFFIXES)}, or a folder with {', '.join(TABLE_NAMES)}"
_SAVED_SIGN = "a folder of save_to_disk, a folder of .parquet files, or a Hub dataset's id"

FORMATS: dict[str, Format] = {
    "coco": Format("COCO's captions_*.json, in a folder or its annotations", find_coco, read_coco),
    "karpathy": Format("Karpathy's dataset_*.json", find_karpathy, read_karpathy),
    "llava": Format("a .json or .jsonl of conversations", find_llava, read_llava, questions="maybe"),
    "flickr8k": Format("Flickr8k.token.txt, or a file of its kind", find_tokens, read_tokens, files=list_token_files),
    "flickr30k": Format("Flickr30k's results.csv, with | between the fields", find_results, read_results),
    "imagefolder": Format(
        f"a folder with {', '.join(METADATA_NAMES)}", find_metadata, read_imagefolder, questions="maybe"
    ),
    "table": Format(_TABLE_SIGN, find_table, read_table, files=list_table_files, questions="maybe"),
    "dataset": Format(_SAVED_SIGN, find_dataset, read_dataset, files=list_dataset_files, questions="maybe"),
    "webdataset": Format("tar shards (.tar)", find_shards, read_shards, questions="maybe"),
    "text_files": Format(
        "a folder with NAME.txt beside NAME.jpg", find_text_files, read_text_files, files=list_text_files
    ),
    "vqa": Format("VQA's *_mscoco_*_questions.json", find_vqa, read_vqa, files=list_vqa_files, questions="always"),
    "json": Format('a .json list of {"image": …, "caption": …}', find_pairs, read_pairs),
}


class SourceSettings(TypedDict, total=False):
    """Settings of a corpus that win over what is recognised; see `Source`, whose attributes they are."""

    images: str | os.PathLike | None
    image_column: str | None
    caption_column: str | None
    subset: str | None
    features: str | os.PathLike | None
    feature_column: str | None
    question_column: str | None
    questions: bool


def load_captions(
    path: str | os.PathLike,
    split: str = "train",
    format: str | None = None,
    limit: int | None = None,
    *,
    on_problem: Callable[[Problem], None] | None = None,
    **options,
) -> Dataset:
    """Reads a split of captioned images: `open_corpus(path, format, **options).load(split, limit, on_problem)`."""
    return open_corpus(path, format, **options).load(split, limit, on_problem)


def open_corpus(
    path: str | os.PathLike,
    format: str | None = None,
    *,
    cleaning: Cleaning | None = None,
    dev_share: float = 0.05,
    on_bad_record: Literal["error", "skip"] = "error",
    **settings: Unpack[SourceSettings],
) -> Corpus:
    """Reads captioned images into the cache, or finds them there.

    What is read depends on the files' paths, sizes and times of change, and on the settings here. When one changes,
    the corpus is read anew.

    Args:
        path: A corpus's folder or file, or a Hub dataset's id.
        format: A name in `FORMATS`; by default it is recognised from what is there.
        cleaning: What is done to the captions; by default only `clean_caption`.
        dev_share: The share of images, by a hash of each, that is "dev" where the corpus has no splits.
        on_bad_record: "error", or "skip" to leave out records with which something is wrong; see `Corpus`.
        **settings: `images`, the folder that image paths are relative to; `image_column`, `caption_column`,
            `question_column`, the columns of a table, where they are not found by name; `subset` of a Hub dataset;
            `features`, a file of vectors that the captions are of instead of pictures, and `feature_column` in it;
            `questions`, whether to read questions, whose answers are then the captions. See `Source`.

    Raises:
        DataError: The format is not known or not clear, or the corpus is malformed.
    """
    source, name = _recognise(path, format, **settings)
    return Corpus(source, name, _format(source, name), cleaning or Cleaning(), dev_share, on_bad_record)


def read_records(
    path: str | os.PathLike, format: str | None = None, **settings: Unpack[SourceSettings]
) -> Iterator[Record | Problem]:
    """Yields what the reader of a corpus does, one after the other, in its order.

    Args:
        path: See `open_corpus`.
        format: See `open_corpus`.
        **settings: See `open_corpus`.

    Raises:
        DataError: The format is not known or not clear, or what follows cannot be read.
    """
    source, name = _recognise(path, format, **settings)
    return _format(source, name).read(source)


def _format(source: Source, name: str) -> Format:
    return FORMATS[name] if source.features is None else VECTORS


def _recognise(path: str | os.PathLike, format: str | None, **settings: Unpack[SourceSettings]) -> tuple[Source, str]:
    """Returns the corpus and the name of its format."""
    values: dict[str, Any] = dict(settings)
    values |= {name: Path(values[name]) for name in ("images", "features") if values.get(name) is not None}
    source = Source(Path(path), **values)
    vectors, questions = source.features, source.questions
    exists = is_file(source.path) or is_folder(source.path)
    if format is not None and format not in FORMATS:
        near = difflib.get_close_matches(format.lower(), FORMATS, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"choose one of {', '.join(FORMATS)}"
        raise DataError(f"unknown format {format!r}: {hint}")
    if vectors is not None:
        if format not in (None, "table"):
            raise DataError(
                f"data.features goes with a table of captions, and data.format is {format!r}: leave it out"
            )
        if questions:
            raise DataError(
                f"{source.path}: captions of vectors have no questions: take {{question}} out of data.prompt"
            )
        if not exists or not is_file(vectors):
            raise DataError(f"{vectors if exists else source.path}: there is no such file")
        return source, "table"
    is_on_hub = bool(find_dataset(source.path)) if format is None else format == "dataset"
    if not exists and not is_on_hub:
        raise DataError(f"{source.path}: there is no such file or folder")
    unfit = "never" if questions else "always"
    if format is not None:
        if FORMATS[format].questions == unfit:
            raise DataError(_unfit(source.path, format, questions))
        return source, format
    found = {name: files for name, known in FORMATS.items() if (files := known.find(source.path))}
    fit = {name: files for name, files in found.items() if FORMATS[name].questions != unfit}
    if found and not fit:
        raise DataError(_unfit(source.path, next(iter(found)), questions))
    found = fit
    if len(found) > 1:  # such lists, among them results of captioners, lie beside many corpora
        found.pop("json", None)
    if len(found) > 1:
        signs = " and ".join(f"{files[0].name} ({name})" for name, files in found.items())
        raise DataError(f"{source.path}: its format could be any of several, for it has {signs}: set data.format")
    if not found:
        looked_for = "; ".join(f"{known.sign} ({name})" for name, known in FORMATS.items())
        raise DataError(
            f"{source.path}: the format is not recognised: looked for {looked_for}; found {_list_some(source.path)}"
        )
    return source, next(iter(found))


def _unfit(path: Path, name: str, questions: bool) -> str:
    if questions:
        return f"{path}: data of the format {name} has no questions: take {{question}} out of data.prompt"
    return f"{path}: data of the format {name} has questions: write {{question}} in data.prompt"


def _list_some(source: Path) -> str:
    if not is_folder(source):
        return f"a file that ends in {source.suffix!r}"
    names = sorted(child.name for child in source.iterdir())
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return (", ".join(names[:5]) or "an empty folder") + more

"""A table of images and captions: CSV, TSV or JSON lines."""

import csv
import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath

from .captions import CaptionedImage, DataError, clean_caption, read_text

TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl")
TABLE_NAMES = ("metadata.csv", "metadata.jsonl", "captions.csv", "captions.jsonl")

# Where a table has several of these, the first one named here counts.
IMAGE_COLUMNS = ("image", "image_path", "file_name", "filename", "path", "file")
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "sentence")
SPLIT_COLUMN = "split"

DEV_SHARE = 0.05


def holds_table(source: Path) -> bool:
    """Whether `source` is a table by its ending, or a folder that holds one by name."""
    if source.is_dir():
        return any((source / name).is_file() for name in TABLE_NAMES)
    return source.suffix.lower() in TABLE_SUFFIXES


def read_table(source: Path, split: str) -> Iterator[CaptionedImage]:
    """Yield the images of `split` in the order in which the table first names them, with all their captions.

    The columns are found by name (`IMAGE_COLUMNS`, `CAPTION_COLUMNS`), whatever the case. Image paths are relative to
    the table's folder. A caption is a string or, in JSON lines, a list of strings as well; rows with the same image
    are one record. CSV and TSV quote alike: a field that starts with `"` ends with one.

    A column `split` says which split a row is of. Without one, there are "train" and "dev": an image is in dev if the
    hash of its path, as the table writes it, is in the lowest 5 % of all hashes. So the choice holds on every machine
    and when images are added, and an image's captions stay together. With two images or more, each has at least one.

    Raises:
        DataError: The table cannot be read, a column or value is missing or malformed, or nothing is in `split`.
    """
    table = _find_table(source)
    rows = list(_read_rows(table))
    if not rows:
        raise DataError(f"{table}: the table has no rows")
    where, columns = rows[0]
    image_column = _find_column(columns, IMAGE_COLUMNS, "image", where)
    caption_column = _find_column(columns, CAPTION_COLUMNS, "caption", where)
    has_split = any(SPLIT_COLUMN in row for _, row in rows)

    captions: dict[str, list[str]] = {}
    splits: dict[str, str] = {}
    for where, row in rows:
        image = PurePath(_get_text(row, image_column, where)).as_posix()  # "./a.jpg" is "a.jpg"
        captions.setdefault(image, []).extend(_get_captions(row, caption_column, where))
        if has_split:
            row_split = _get_text(row, SPLIT_COLUMN, where)
            if splits.setdefault(image, row_split) != row_split:
                raise DataError(
                    f"{where}: the image {image} is in the split {row_split!r} here and in {splits[image]!r} above: "
                    "keep all its rows in one split"
                )
    if not has_split:
        splits = _cut_dev(list(captions))

    if split not in splits.values():
        there = ", ".join(sorted(set(splits.values())))
        raise DataError(f"{table}: no image is in the split {split!r}; splits that are there: {there}")
    for image, found in captions.items():
        if splits[image] == split:
            yield CaptionedImage(str(table.parent / image), tuple(found))


def _find_table(source: Path) -> Path:
    if not source.is_dir():
        if source.suffix.lower() not in TABLE_SUFFIXES:
            raise DataError(f"{source}: a table's file name ends in {', '.join(TABLE_SUFFIXES)}")
        return source
    there = [name for name in TABLE_NAMES if (source / name).is_file()]
    if not there:
        raise DataError(f"{source}: the folder holds no table: looked for {', '.join(TABLE_NAMES)}")
    if len(there) > 1:
        raise DataError(f"{source}: the folder holds {' and '.join(there)}: give the path of the one to read")
    return source / there[0]


def _read_rows(table: Path) -> Iterator[tuple[str, dict[str, object]]]:
    """Yield each row by column name, after its place for error messages."""
    text = read_text(table)
    return _read_jsonl(table, text) if table.suffix.lower() == ".jsonl" else _read_csv(table, text)


def _read_csv(table: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    # Strict: a stray quotation mark is an error, where csv would else swallow the rows up to the next one.
    reader = csv.reader(io.StringIO(text), delimiter="\t" if table.suffix.lower() == ".tsv" else ",", strict=True)
    header: list[str] = []
    number = 0
    try:
        for number, cells in enumerate(reader, start=1):
            if not header:
                header = [_column(cell) for cell in cells]
            elif cells:
                if len(cells) != len(header):
                    raise DataError(
                        f"{table}, row {number}: {len(cells)} fields, and the header has {len(header)}: "
                        'put a field that holds the separator between quotation marks (")'
                    )
                yield f"{table}, row {number}", dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise DataError(
            f"{table}, row {number + 1}: {error}: double the quotation marks inside a quoted field"
        ) from error


def _read_jsonl(table: Path, text: str) -> Iterator[tuple[str, dict[str, object]]]:
    for number, line in enumerate(text.split("\n"), start=1):  # splitlines also splits inside JSON strings
        if not line.strip():
            continue
        where = f"{table}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{where}: this is not JSON ({error}): write one object a line") from error
        if not isinstance(row, dict):
            raise DataError(f"{where}: this is not a JSON object: write one object a line")
        yield where, {_column(key): value for key, value in row.items()}


def _column(name: str) -> str:
    return name.strip().lower()


def _find_column(columns: Mapping[str, object], names: tuple[str, ...], what: str, where: str) -> str:
    for name in names:
        if name in columns:
            return name
    raise DataError(
        f"{where}: there is no {what} column: looked for {', '.join(names)} and found {', '.join(columns) or 'none'}"
    )


def _get_text(row: Mapping[str, object], column: str, where: str) -> str:
    value = row.get(column)
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{where}: the column {column!r} must hold text, and holds {value!r}")
    return value.strip()


def _get_captions(row: Mapping[str, object], column: str, where: str) -> list[str]:
    value = row.get(column)
    texts = value if isinstance(value, list) else [value]
    captions = [clean_caption(text) for text in texts if isinstance(text, str)]
    if not captions or not all(captions) or len(captions) < len(texts):
        raise DataError(
            f"{where}: the column {column!r} must hold a caption, or in JSON lines a list of captions, none empty, "
            f"and holds {value!r}"
        )
    return captions


def _cut_dev(images: list[str]) -> dict[str, str]:
    """Put each image in "train" or "dev" by a hash of its path."""
    ranks = {image: int.from_bytes(hashlib.sha256(image.encode()).digest()[:8]) / 2**64 for image in images}
    ranked = sorted(images, key=ranks.__getitem__)
    count = sum(rank < DEV_SHARE for rank in ranks.values())
    count = min(max(count, 1), len(images) - 1)  # one at least in each
    return {image: "dev" if place < count else "train" for place, image in enumerate(ranked)}

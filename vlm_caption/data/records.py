"""What readers yield, and what they are told.

A format is one `Format`: how it is recognised, and a reader. A reader gets a `Source` and yields, one at a time and in
the corpus's order, a `Record` for an image and some of its captions, or a `Problem` where something is wrong with one
record only. What makes the rest unreadable (a broken file, no such column) it raises as a `DataError`.
"""

import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from ..core.errors import DataError
from ..core.files import is_file, is_folder
from ..core.text import preview
from .archives import ZipPictures
from .places import Place

logger = logging.getLogger(__name__)

# Where a table has several of these, the first one named here counts.
IMAGE_COLUMNS = (
    *("image", "image_path", "file_name", "filename", "image_name"),
    *("b64string_images", "image_base64", "base64", "image_bytes", "bytes", "jpg", "png", "img", "path", "file"),
)
CAPTION_COLUMNS = ("caption", "captions", "text", "comment", "sentence", "sentences", "txt")
QUESTION_COLUMNS = ("question", "questions", "query")
ANSWER_COLUMNS = ("multiple_choice_answer", "answer", "answers", *CAPTION_COLUMNS)
SPLIT_COLUMN = "split"

# Folders of pictures beside a file of captions, as the well-known corpora name them.
PHOTO_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images", "flickr30k_images", "flickr30k-images")

# The words that file and folder names have for splits: "captions_train2017.json", "imagenet-val-0001.tar", "testing/".
_SPLIT_WORD = re.compile(r"(?:^|[^a-z])(train|dev|val|valid|validation|test)(?:ing)?\d*(?=[^a-z\d]|$)")


# "./a.jpg" and "photos//a.jpg" are other words for "a.jpg" and "photos/a.jpg".
_UNTIDY = re.compile(r"^\./|//|/\./|/$")


@dataclass(frozen=True, slots=True)
class Record:
    """One image and some of its captions, as the corpus has them; several records may be of one image.

    Attributes:
        image: The picture's place, `str(Place)`.
        captions: Not yet cleaned; none, if the corpus has the image without any.
        key: What the image is called, wherever the corpus lies: its path as written, or a hash of its bytes. Records
            with one key are one image, and a hash of it cuts the splits.
        where: File and row, for messages.
        split: As the corpus says, if it does.
        questions: One for each of the captions, which are the answers, where questions are read.
        content: The picture's bytes, where the corpus has them as text (base64). The store keeps them in a file of its
            own, and `image` is empty before.
    """

    image: str
    captions: tuple[str, ...]
    key: str
    where: str
    split: str | None = None
    questions: tuple[str, ...] = ()
    content: bytes | None = None


@dataclass(frozen=True, slots=True)
class Problem:
    """What is wrong with one record, which is left out.

    Attributes:
        where: File and row.
        reason: What is wrong, and what to do about it.
        image: The picture's place, if that is known.
        split: The record's, if that is known.
    """

    where: str
    reason: str
    image: str | None = None
    split: str | None = None

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}"


@dataclass(frozen=True, slots=True)
class Source:
    """A corpus, and the settings that win over what is recognised.

    Attributes:
        path: Its file or folder; of a Hub dataset the id.
        images: The folder that image paths are relative to.
        image_column, caption_column: Names in a table; in tar shards, `caption_column` is the member's ending or the
            field of its JSON.
        subset: Of a Hub dataset.
        features: A file of vectors that the captions are of, instead of pictures.
        feature_column: Of such a file, if it is Parquet.
        question_column: Likewise, of the questions.
        questions: Whether to read questions; captions are then the answers.
    """

    path: Path
    images: Path | None = None
    image_column: str | None = None
    caption_column: str | None = None
    subset: str | None = None
    features: Path | None = None
    feature_column: str | None = None
    question_column: str | None = None
    questions: bool = False


Reader = Callable[[Source], Iterator[Record | Problem]]


@dataclass(frozen=True, slots=True)
class Format:
    """A format that corpora come in.

    Attributes:
        sign: How it is recognised, in words.
        find: The files and folders by which a path holds this format, empty if it does not.
        read: Its reader.
        files: The files that the records depend on, for the cache to notice a change; by default those of `find`.
        questions: Whether it never has questions, always, or may have them.
    """

    sign: str
    find: Callable[[Path], list[Path]]
    read: Reader
    files: Callable[[Source], Iterable[Path]] | None = None
    questions: Literal["never", "always", "maybe"] = "never"


class ImageFolder:
    """Makes records of pictures that a corpus names by path, and is the one place that says which paths are followed.

    The first picture that is there shows which folder the paths are relative to. Out of a folder that was found, no
    path may lead; from a folder that the user gave, every path is followed.

    Args:
        source: The corpus.
        candidates: Folders in which the pictures may be, unless one is given. A zip archive in the first of them, with
            the first picture in it, counts as a folder as well.
        root: Where names repeat in the corpus's folders: the folder that keys are paths from. By default a key is the
            name.
        trusted: Further folders that absolute paths may lead to.

    Raises:
        DataError: The folder that was given is not there.
    """

    def __init__(
        self,
        source: Source,
        candidates: Sequence[Path],
        root: Path | None = None,
        trusted: Sequence[Path] = (),
    ):
        self._source, self._root, self._trusted = source, root, [os.path.abspath(path) for path in trusted]  # noqa: PTH100
        self._candidates = list(dict.fromkeys(candidates))
        self._chosen: Path | None = source.images
        self._archive: ZipPictures | None = None
        self._first: str | None = None
        if source.images is not None and source.images.suffix.lower() == ".zip" and is_file(source.images):
            self._archive = ZipPictures(source.images)
        elif source.images is not None and not is_folder(source.images):
            raise DataError(f"{source.images}: there is no such folder: correct data.images")

    def record(
        self,
        name: str,
        captions: Sequence[str],
        where: str,
        split: str | None = None,
        questions: Sequence[str] = (),
    ) -> Record | Problem:
        """Returns the record of the picture that the corpus calls `name`. Whether it is there is not said.

        Raises:
            DataError: The folder could be either of two.
        """
        if name.lower().startswith(("http://", "https://")):
            return Problem(where, f"{name} is a URL: download the picture and give its path", split=split)
        try:
            name.encode()
        except UnicodeEncodeError:
            return Problem(where, f"the file name {name!r} is not UTF-8: rename the file", split=split)
        name = self._tidy(name)
        if not name or "\0" in name:
            return Problem(where, f"{name!r} is no file name", split=split)
        if not self._may_follow(name):
            reason = "leads out of the folder: set data.images to the folder it is meant from, and it is followed"
            return Problem(where, f"the path {name} {reason}", split=split)
        if self._chosen is None:
            self._choose(name)
        if self._archive is not None:
            place = self._archive.place(name)
            if isinstance(place, str):
                return Problem(where, place, split=split)
            return Record(str(place), tuple(captions), name, where, split, tuple(questions))
        path = _join(self._chosen or self._candidates[0], name)
        key = name if self._root is None else os.path.relpath(path, self._root)
        return Record(str(Place(path)), tuple(captions), key, where, split, tuple(questions))

    def _may_follow(self, name: str) -> bool:
        """Returns whether a path stays in the corpus's folder, or leads where it may."""
        if self._source.images is not None:
            return True
        if name.startswith("/"):
            return any(os.path.normpath(name).startswith(f"{folder}/") for folder in self._trusted)
        return os.path.normpath(name).split("/")[0] != ".."

    def _tidy(self, name: str) -> str:
        """Returns the name without spaces around it and without backslashes, unless a file has exactly this name."""
        if "\\" in name and not self.has(name):
            name = name.replace("\\", "/")  # as Windows writes paths
        if name != name.strip() and not self.has(name):
            name = name.strip()
        return PurePosixPath(name).as_posix() if _UNTIDY.search(name) else name

    def has(self, name: str) -> bool:
        """Returns whether there is a picture of this name."""
        if self._archive is not None:
            return self._archive.has(name)
        folders = [self._chosen] if self._chosen is not None else self._candidates
        return any(is_file(_join(folder, name)) for folder in folders)

    def _choose(self, name: str) -> None:
        self._first = self._first or name
        holders = [folder for folder in self._candidates if is_file(_join(folder, name))]
        archives: list[ZipPictures] = []
        if not holders and self._first == name and self._candidates:
            zips = sorted(self._candidates[0].glob("*.zip"))
            archives = [archive for archive in map(ZipPictures, zips) if archive.has(name)]
            holders = [archive.path for archive in archives]
        if len(holders) > 1:
            raise DataError(
                f"{self._source.path}: the picture {name} is in {holders[0]} and in {holders[1]}: set data.images to "
                "the folder to take it from"
            )
        if holders:
            self._chosen = holders[0]
            self._archive = archives[0] if archives else None

    def check(self) -> None:
        """Is called after the last record.

        Raises:
            DataError: None of the pictures is there.
        """
        if self._chosen is None and self._first is not None:
            looked_in = ", ".join(map(str, self._candidates))
            raise DataError(
                f"{self._source.path}: none of its pictures is there, first: {self._first}: looked in {looked_in}: "
                "set data.images to the folder that holds them"
            )


def _join(folder: Path, name: str) -> str:
    """Returns `str(folder / name)`, without making a Path for each of millions."""
    if name.startswith("/"):
        return name
    start = str(folder)
    return name if start == "." else f"{start.rstrip('/')}/{name}"


def find_split(name: str) -> str | None:
    """Returns the split that the name of a file or folder mentions, such as "train" in "captions_train2017.json"."""
    match = _SPLIT_WORD.search(name.lower())
    return match[1] if match else None


def settle_names(splits: Sequence[str | None]) -> list[str | None]:
    """Returns the split of each part of a corpus, by the split that its name mentions.

    All are None if a part's name mentions no split, or if all names mention "train".
    """
    named = {split for split in splits if split is not None}
    if None in splits and named - {"train"}:
        logger.warning(
            "Some of the corpus's files or folders are called %s, and others by no split: the names are not taken for "
            "splits",
            " and ".join(sorted(named)),
        )
    return [None] * len(splits) if None in splits or named == {"train"} else list(splits)


def as_captions(value: object) -> list[str]:
    """Returns the captions in a string or a list of strings; [] for anything else."""
    values = value if isinstance(value, list) else [value]
    return values if all(isinstance(caption, str) for caption in values) else []


def first_of(values: Mapping[str, Any], names: Iterable[str]) -> Any:
    """Returns the first of these fields that has a value: writers of tables fill absent ones with null."""
    return next((values[name] for name in names if values.get(name) is not None), None)


def join_turns(turns: Sequence[str]) -> str:
    """Returns a question behind what was said before it, a line for each turn; "" if the question is empty."""
    lines = [" ".join(turn.split()) for turn in turns]
    return "\n".join(filter(None, lines)) if lines[-1] else ""


def as_answers(question: object, answers: object) -> tuple[list[str], list[str]]:
    """Returns questions and as many answers, from lists of both or one question and its answers; else [] and []."""
    questions, texts = as_captions(question), as_captions(answers)
    if isinstance(question, str):
        questions = questions * len(texts)
    return (questions, texts) if len(questions) == len(texts) else ([], [])


def describe_unpaired(question_column: str, answer_column: str, question: object, answers: object) -> str:
    """Says what is wrong with a row in which `as_answers` finds nothing."""
    return (
        f"the columns {question_column!r} and {answer_column!r} must hold a question and its answers, or as many "
        f"questions as answers, and hold {preview(question)} and {preview(answers)}"
    )


def list_subfolders(folder: Path) -> list[Path]:
    """Returns the visible folders in a folder, sorted.

    Raises:
        DataError: The folder cannot be listed.
    """
    try:
        return sorted(child for child in folder.iterdir() if is_folder(child) and not child.name.startswith("."))
    except OSError as error:
        raise DataError(f"{folder}: the folder cannot be listed ({error.strerror or error})") from error


def the_one(paths: Sequence[Path], source: Path, looked_for: str) -> Path:
    """Returns the only one of `paths`.

    Raises:
        DataError: There is none, or there are several.
    """
    if not paths:
        raise DataError(f"{source}: it holds no {looked_for}")
    if len(paths) > 1:
        names = " and ".join(path.name for path in paths)
        raise DataError(f"{source}: the folder holds {names}: give the path of the one to read")
    return paths[0]


def find_column(columns: Iterable[str], given: str | None, names: Sequence[str], what: str, where: str) -> str:
    """Returns the column that holds what is looked for, by its name in any case.

    Args:
        columns: Those that are there.
        given: The name in the setting `data.{what}_column`, if that is set.
        names: The names to look for; of several that are there, the first counts.
        what: "image", "caption" or "question".
        where: For the message.

    Raises:
        DataError: There is no such column.
    """
    by_name = {column.strip().lower(): column for column in columns}
    for name in names if given is None else (given.strip().lower(),):
        if name in by_name:
            return by_name[name]
    looked_for = ", ".join(names) if given is None else given
    asks = what == "caption" and not by_name.keys().isdisjoint(QUESTION_COLUMNS)
    raise DataError(
        f"{where}: there is no {what} column: looked for {looked_for} and found {', '.join(by_name) or 'none'}: "
        f"set data.{what}_column{', or write {question} in data.prompt to train on questions' if asks else ''}"
    )


def find_texts(columns: Iterable[str], source: Source, where: str) -> tuple[str, str | None]:
    """Returns the column of captions and, where questions are read, the column of questions.

    Raises:
        DataError: There is no such column.
    """
    columns = list(columns)
    if not source.questions:
        return find_column(columns, source.caption_column, CAPTION_COLUMNS, "caption", where), None
    question_column = find_column(columns, source.question_column, QUESTION_COLUMNS, "question", where)
    return find_column(columns, source.caption_column, ANSWER_COLUMNS, "caption", where), question_column

"""Finds the pictures to caption: in files, folders, lists, archives and tables, and on the web."""

import glob
import io
import os
import tarfile
import zipfile
import zlib
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Protocol

from ..core.console import first_line_of
from ..core.errors import ConfigError, DataError, ImageError, ImageNotFoundError
from ..core.files import is_file, is_folder, open_regular
from ..core.text import preview, readable
from ..data.records import IMAGE_COLUMNS, find_column
from ..images.finding import PassedOver, find_images
from ..images.opening import IMAGE_SUFFIXES, ImageSource, describe
from ..images.stored import StoredPicture
from .places import URL, place_of

if TYPE_CHECKING:
    from typing_extensions import TypeIs

    from ..data.vectors import Vectors

_TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")


def find_pictures(
    names: Iterable[str],
    on_error: Callable[[ImageError], None],
    stdin: BinaryIO | None = None,
    passed_over: PassedOver | None = None,
) -> list[ImageSource]:
    """Lists the pictures that the arguments of a command name. Each picture occurs once.

    Args:
        names: Files, folders, URLs, glob patterns such as "photos/**/*.jpg", zip and tar archives, Parquet files with
            a column of pictures; "@list.txt" for a file with a name in each line, and "-" for standard input with a
            name in each line. Names in a list may also be separated by zero bytes.
        on_error: A function that gets the error of each name without pictures, and of each damaged archive or table.
        stdin: Standard input.
        passed_over: Counts what a search of folders passes over.

    Returns:
        What `open_image` takes, in the order of the names. Pictures in archives and tables are read when opened.

    Raises:
        ConfigError: A name is empty.
        DataError: A list cannot be read.
    """
    found: dict[str, ImageSource] = {}
    for name in names:
        if not name:
            raise ConfigError("An argument is empty, and names no picture: is a variable of your shell not set?")
        try:
            for source in _expand(name, on_error, stdin, passed_over):
                found.setdefault(place_of(describe(source)), source)
        except ImageError as error:
            on_error(error)
    return list(found.values())


def is_vectors_file(vectors: object) -> "TypeIs[Vectors]":
    """Returns whether inputs are the vectors of a file, a `Vectors`, without importing that class and pyarrow."""
    return hasattr(vectors, "path")


def _expand(
    name: str,
    on_error: Callable[[ImageError], None],
    stdin: BinaryIO | None,
    passed_over: PassedOver | None,
    is_listed: bool = False,
) -> Iterator[ImageSource]:
    """Yields the pictures of one name. A name in a list is never a pattern or another list."""
    if name == "-" and not is_listed:
        yield from _expand_list(stdin.read() if stdin is not None else b"", on_error, passed_over)
    elif name.startswith("@") and not is_listed:
        try:
            content = Path(name[1:]).read_bytes()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise DataError(f"{name[1:]}: the list of pictures cannot be read ({reason})") from error
        yield from _expand_list(content, on_error, passed_over)
    elif URL.match(name):
        yield name
    elif is_folder(name):
        yield from find_images([name], passed_over=passed_over)
    elif not os.path.lexists(name) and not is_listed and glob.has_magic(name):
        matches = sorted(filter(is_file, glob.iglob(name, recursive=True)))  # noqa: PTH207 - it takes any pattern
        if not matches:
            raise ImageNotFoundError(name, "no file has such a name")
        for match in matches:
            yield from _expand(match, on_error, stdin, passed_over, is_listed=True)
    elif name.lower().endswith(".zip"):
        yield from _open_zip(name)
    elif name.lower().endswith(_TAR_ENDINGS):
        yield from _open_tar(name)
    elif name.lower().endswith(".parquet"):
        yield from _open_parquet(name)
    else:
        yield Path(name)


def _expand_list(
    content: bytes, on_error: Callable[[ImageError], None], passed_over: PassedOver | None
) -> Iterator[ImageSource]:
    separator = b"\0" if b"\0" in content else b"\n"
    for line in content.removeprefix(b"\xef\xbb\xbf").split(separator):
        if separator == b"\n":
            line = line.removesuffix(b"\r")
        if line:
            try:
                yield from _expand(os.fsdecode(line), on_error, None, passed_over, is_listed=True)
            except ImageError as error:
                on_error(error)


class _Container(Protocol):
    """An open archive or table. Its class takes the path alone."""

    path: str

    def open(self, key: Any, /) -> Any:
        """Opens a picture."""


class _Opener:
    """Opens a picture of a container. A pickled copy opens the container again, once for each process."""

    def __init__(self, container: _Container, key: Any) -> None:
        self.container, self.key = container, key

    def __call__(self) -> Any:
        return self.container.open(self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (_open_again, type(self.container), self.container.path, self.key)


def _open_again(kind: Callable[[str], _Container], path: str, key: Any) -> Any:
    return _reopened(kind, path).open(key)


@lru_cache(maxsize=4)  # a process gets the pictures of one archive after the other
def _reopened(kind: Callable[[str], _Container], path: str) -> _Container:
    return kind(path)


class _Zip:
    """The pictures in a zip archive."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.archive = zipfile.ZipFile(path)

    def open(self, name: str) -> Any:
        return self.archive.open(name)


class _Tar:
    """The pictures in a tar archive: those before the damage, if it is damaged.

    Attributes:
        fault: The damage.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self.members: dict[str, tarfile.TarInfo] = {}
        self.fault: Exception | None = None
        try:
            self.archive = tarfile.open(path)  # noqa: SIM115 - its pictures are read later
            for member in self.archive:
                if member.isreg() and _is_picture(member.name):
                    self.members[member.name] = member
        except (OSError, tarfile.TarError, EOFError, zlib.error, ValueError) as error:
            self.fault = error

    def open(self, name: str) -> Any:
        if self.fault is not None and name not in self.members:  # in another process, which lacks the file
            raise self.fault
        return self.archive.extractfile(self.members[name])


def _open_zip(path: str) -> Iterator[StoredPicture]:
    try:
        container = _Zip(path)
        names = [info.filename for info in container.archive.infolist() if _is_picture(info.filename)]
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError) as error:
        raise _unreadable(path, "zip archive", error) from error
    yield from _named(container, names)


def _open_tar(path: str) -> Iterator[StoredPicture]:
    container = _Tar(path)
    if container.members or container.fault is None:
        yield from _named(container, list(container.members))
    if container.fault is not None:
        raise _unreadable(path, "tar archive", container.fault) from container.fault


def _named(container: _Zip | _Tar, names: Sequence[str]) -> Iterator[StoredPicture]:
    if not names:
        raise ImageNotFoundError(
            container.path, f"the archive holds no pictures ({', '.join(sorted(IMAGE_SUFFIXES))})"
        )
    for name in names:
        yield StoredPicture(f"{container.path}, {readable(name)}", _Opener(container, name))


def _is_picture(name: str) -> bool:
    """Returns whether a member of an archive is a picture, and not one of the files that macOS hides in archives."""
    path = Path(name)
    return path.suffix.lower() in IMAGE_SUFFIXES and not any(part.startswith((".", "__MACOSX")) for part in path.parts)


def _open_parquet(path: str) -> Iterator[StoredPicture]:
    import pyarrow as pa

    try:
        rows = _ParquetRows(path)
    except (OSError, pa.ArrowException, DataError) as error:
        raise _unreadable(path, "Parquet file", error) from error
    count = rows.table.metadata.num_rows
    if not count:
        raise ImageNotFoundError(path, "the table has no rows")
    for row in range(count):
        yield StoredPicture(f"{path}, row {row + 1}", _Opener(rows, row))


def _unreadable(path: str, kind: str, error: Exception) -> ImageError:
    if isinstance(error, FileNotFoundError):
        return ImageNotFoundError(path, "there is no such file")
    return ImageError(path, f"the {kind} cannot be read ({first_line_of(error)})")


class _ParquetRows:
    """The pictures in a column of a Parquet file. Rows are read in order, a few at a time."""

    ROWS = 16

    def __init__(self, path: str) -> None:
        import pyarrow.parquet as pq

        self.path, self.table = path, pq.ParquetFile(path)
        self.column = find_column(self.table.schema_arrow.names, None, IMAGE_COLUMNS, "image", path)
        groups = range(self.table.num_row_groups)
        self.ends = list(accumulate(self.table.metadata.row_group(group).num_rows for group in groups))
        self.batches: Iterator[Any] = iter(())
        self.start, self.end, self.values = 0, 0, []

    def open(self, row: int) -> BinaryIO:
        """Opens the picture of a row.

        Raises:
            OSError: The row has no picture, or the file that it names cannot be opened.
        """
        value = self._value(row)
        if isinstance(value, dict):  # the type Image of `datasets`: bytes, or the path of a file
            value = value.get("bytes") or value.get("path")
        if isinstance(value, str):
            return self._open_file(value)
        if not isinstance(value, bytes):
            raise OSError("the row has no picture")
        return io.BytesIO(value)

    def _value(self, row: int) -> Any:
        """Returns what a row has in the column. An error of pyarrow's costs the rows of one row group at most."""
        if not self.values or not self.start <= row < self.end:
            self._begin(row)
        try:
            while row >= self.start + len(self.values):
                self.start += len(self.values)
                self.values = next(self.batches).column(0).to_pylist()
        except Exception:
            self.values = []  # those before the damage belong to other rows
            raise
        return self.values[row - self.start]

    def _open_file(self, name: str) -> BinaryIO:
        """Opens a file that a row names, in the folder of the table or below it.

        Raises:
            OSError: The file is elsewhere, or cannot be opened.
        """
        path = Path(os.path.normpath(name))
        if path.is_absolute() or os.pardir in path.parts[:1]:
            raise OSError(f"the row names {preview(name)}, which is not in the folder of the table")
        try:
            return open_regular(Path(self.path).parent / name)
        except OSError as error:
            raise OSError(f"the row names {preview(name)}: {error.strerror or error}") from error

    def _begin(self, row: int) -> None:
        """Starts reading at the row group that contains a row."""
        group = bisect_right(self.ends, row)
        self.start, self.end, self.values = self.ends[group - 1] if group else 0, self.ends[group], []
        self.batches = self.table.iter_batches(self.ROWS, row_groups=[group], columns=[self.column])

"""Decoders for files that somebody else wrote: JSON, YAML and the headers of safetensors files.

The standard decoders answer a damaged or hostile file with many kinds of errors (`RecursionError` for deep nesting,
`ValueError` for a number of 5,000 digits), and some with a crash. These answer with one sentence that names the file.
"""

import codecs
import json
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from .errors import DataError
from .files import open_regular

MakeError = Callable[[str], Exception]

# The limit of safetensors itself, in bytes.
_MAX_HEADER_BYTES = 100_000_000

# The longest single entry of a JSON file that is read entry by entry, in characters.
_MAX_ENTRY = 1 << 26
_CHUNK_BYTES = 1 << 16

# A YAML file of a few bytes can stand for billions of values by naming the same list again and again.
_MAX_YAML_VALUES = 100_000

_SPACE = " \t\n\r"
_AFTER_VALUE = frozenset(",]}:" + _SPACE)


def load_json(content: bytes | str, where: str, error: MakeError = DataError) -> Any:
    """Decodes a JSON text.

    Args:
        content: The text, or its bytes in UTF-8, with or without a byte order mark.
        where: The file, and the line in it, for the message.
        error: The class of the error to raise.

    Raises:
        Exception: An `error`: the text is not JSON, is nested too deeply, or holds a number that is too long.
    """
    try:
        text = content if isinstance(content, str) else content.decode("utf-8")
        return json.loads(text.removeprefix("\ufeff"))
    except (ValueError, RecursionError) as fault:
        raise error(f"{where}: this is not JSON ({_reason(fault)})") from fault


def load_yaml(text: str, where: str, error: MakeError = DataError) -> Any:
    """Decodes the YAML text of a config: dictionaries, lists, text, numbers and dates.

    Args:
        text: The text.
        where: The file, for the message.
        error: The class of the error to raise.

    Raises:
        Exception: An `error`: the text is not YAML, is nested too deeply, or stands for too many values.
    """
    import yaml

    try:
        loaded = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, TypeError, OverflowError, RecursionError, AttributeError) as fault:
        raise error(f"{where}: the config is not valid YAML: {_reason(fault)}.") from fault
    count, waiting = 0, [loaded]
    while waiting:
        value = waiting.pop()
        count += 1
        if count > _MAX_YAML_VALUES:
            raise error(f"{where}: the config holds more than {_MAX_YAML_VALUES:,} values: write it without aliases.")
        if isinstance(value, dict):
            waiting += value.values()
        elif isinstance(value, (list, set, tuple)):
            waiting += value
    return loaded


def read_safetensors_header(path: Path, error: MakeError = DataError) -> tuple[dict[str, Any], int]:
    """Reads the header of a safetensors file, without its tensors.

    Args:
        path: The file.
        error: The class of the error to raise.

    Returns:
        The header, which maps each tensor's name to its `dtype`, `shape` and `data_offsets`, and may have
        `__metadata__`; and the offset in bytes at which the tensors begin.

    Raises:
        Exception: An `error`: the file cannot be read, is cut short, or is no safetensors file.
    """
    try:
        with open_regular(path) as file:
            size = int.from_bytes(file.read(8), "little")
            length = file.seek(0, 2) - 8
            if not 2 <= size <= min(length, _MAX_HEADER_BYTES):
                raise error(f"{path}: this is not a safetensors file")
            file.seek(8)
            content = file.read(size)
    except OSError as fault:
        raise error(f"{path}: the file cannot be read ({fault.strerror or fault})") from fault
    header = load_json(content, str(path), error)
    tensors = dict(header) if isinstance(header, dict) else {"": None}
    tensors.pop("__metadata__", None)
    if not all(map(_is_tensor, tensors.values())):
        raise error(f"{path}: this is not a safetensors file")
    for name, entry in tensors.items():
        if entry["data_offsets"][1] > length - size:
            raise error(f"{path} ends before its tensor {name!r} does")
    return header, 8 + size


def _is_tensor(entry: object) -> bool:
    """Returns whether an entry of a safetensors header describes a tensor."""
    if not isinstance(entry, dict) or not isinstance(entry.get("dtype"), str):
        return False
    shape, offsets = entry.get("shape"), entry.get("data_offsets")
    if not isinstance(shape, list) or not isinstance(offsets, list) or len(offsets) != 2:
        return False
    if not all(type(number) is int and number >= 0 for number in [*shape, *offsets]):
        return False
    return offsets[0] <= offsets[1]


def iterate_json(path: Path, error: MakeError = DataError) -> Generator[tuple[str | None, Any]]:
    """Yields the entries of the lists in a JSON file, one by one, so that the file may be of any length.

    Args:
        path: A file that holds a list, or an object whose values may be lists.
        error: The class of the error to raise.

    Yields:
        The name of the list, or None if the file is a list itself; and an entry. Other values are skipped.

    Raises:
        Exception: An `error`: the file cannot be read, is not JSON in UTF-8, or has an entry that is too long.
    """
    try:
        with open_regular(path) as file:
            yield from _Entries(file)
    except OSError as fault:
        raise error(f"{path}: the file cannot be read ({fault.strerror or fault})") from fault
    except (ValueError, RecursionError) as fault:
        raise error(f"{path}: this is not JSON in UTF-8 ({_reason(fault)})") from fault


class _Entries:
    """The entries of a JSON file's lists; see `iterate_json`."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._decode_bytes = codecs.getincrementaldecoder("utf-8-sig")()
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._place, self._ended = "", 0, False

    def __iter__(self) -> Iterator[tuple[str | None, Any]]:
        start = self._peek()
        if start == "[":
            yield from self._list(None)
        elif start == "{":
            yield from self._object()
        else:
            self._value()
        if self._peek():
            raise ValueError("there is more text behind its end")

    def _object(self) -> Iterator[tuple[str | None, Any]]:
        self._expect("{")
        if self._take("}"):
            return
        while True:
            name = self._value()
            if not isinstance(name, str):
                raise ValueError("a name must be text")
            self._expect(":")
            if self._peek() == "[":
                yield from self._list(name)
            else:
                self._value()
            if self._take("}"):
                return
            self._expect(",")

    def _list(self, name: str | None) -> Iterator[tuple[str | None, Any]]:
        self._expect("[")
        if self._take("]"):
            return
        while True:
            yield name, self._value()
            if self._take("]"):
                return
            self._expect(",")

    def _read(self) -> None:
        """Doubles the text that is waiting, so that a long entry is not decoded too often."""
        self._text = self._text[self._place :]
        self._place = 0
        content = self._file.read(max(_CHUNK_BYTES, len(self._text)))
        self._ended = not content
        self._text += self._decode_bytes.decode(content, final=self._ended)

    def _peek(self) -> str:
        """Returns the next character that is not a space, or "" at the end."""
        while True:
            while self._place < len(self._text) and self._text[self._place] in _SPACE:
                self._place += 1
            if self._place < len(self._text):
                return self._text[self._place]
            if self._ended:
                return ""
            self._read()

    def _take(self, character: str) -> bool:
        if self._peek() != character:
            return False
        self._place += 1
        return True

    def _expect(self, character: str) -> None:
        if not self._take(character):
            raise ValueError(f"expected {character!r} and found {self._peek() or 'the end of the file'!r}")

    def _value(self) -> Any:
        """Decodes and returns the next value."""
        self._peek()
        while True:
            try:
                value, end = self._decode(self._text, self._place)
                # The text may end inside a number, and "-0" would be read from "-0.5".
                if self._ended or self._text[end : end + 1] in _AFTER_VALUE:
                    self._place = end
                    return value
            except json.JSONDecodeError:
                if self._ended:
                    raise
            if len(self._text) - self._place > _MAX_ENTRY:
                raise ValueError(f"no entry ends within {_MAX_ENTRY:,} characters")
            self._read()


def _reason(fault: Exception) -> str:
    """Returns the message of an error in one line."""
    if isinstance(fault, RecursionError):
        return "it is nested too deeply"
    return " ".join(str(fault).split())[:300]

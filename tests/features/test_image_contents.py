"""Digests of images' contents: when a file is read, and when it is not."""

import base64
import contextlib
import hashlib
import logging
import os
import sqlite3
from pathlib import Path

import pytest

from vlm_caption.data import DataError, Place
from vlm_caption.features import contents as image_contents
from vlm_caption.features.contents import content_digests


@pytest.fixture
def memory(tmp_path):
    return tmp_path / "cache" / "contents.sqlite"


@pytest.fixture
def files(tmp_path):
    """Paths of three files that have not changed for long."""
    paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return [str(path) for path in paths]


@pytest.fixture
def read(monkeypatch):
    """The images whose bytes were read; all files count as settled."""
    monkeypatch.setattr(image_contents, "_SETTLED_NS", 0)
    names: list[str] = []

    original = image_contents.content_digest

    def digest(image, *limits):
        names.append(Place.parse(image).short_name)
        return original(image, *limits)

    monkeypatch.setattr(image_contents, "content_digest", digest)
    return names


def hexes(images, memory) -> list[str]:
    digests, errors = content_digests(images, memory)
    assert not errors
    return [bytes(digest).hex() for digest in digests]


def test_is_the_sha256_of_the_bytes_and_files_are_read_once(files, memory, read):
    expected = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    assert hexes(files, memory) == expected
    assert sorted(read) == ["a.jpg", "b.jpg", "c.jpg"]
    assert hexes(files[::-1], memory) == expected[::-1]
    assert len(read) == 3


@pytest.mark.parametrize("change", ["touched", "other bytes", "other bytes, its time set back"])
def test_a_file_that_changed_is_read_again(files, memory, read, change):
    hexes(files, memory)
    read.clear()
    path = Path(files[1])
    status = path.stat()
    if change != "touched":
        path.write_bytes(b"B.jpg")  # as long as before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns if "back" in change else status.st_mtime_ns + 1))
    assert hexes(files, memory)[1] == hashlib.sha256(path.read_bytes()).hexdigest()
    assert read == ["b.jpg"]


def test_a_file_that_changed_a_moment_ago_is_not_remembered(files, memory, read, monkeypatch):
    monkeypatch.setattr(image_contents, "_SETTLED_NS", 60_000_000_000)
    hexes(files, memory)
    hexes(files, memory)
    assert len(read) == 6


def test_the_same_path_from_elsewhere_is_the_same_file(files, memory, read, monkeypatch, tmp_path):
    hexes(files, memory)
    monkeypatch.chdir(tmp_path)
    hexes(["a.jpg", "./b.jpg"], memory)
    assert len(read) == 3


def test_stretches_of_a_file_have_digests_of_their_own(tmp_path, memory, read):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"headONEtwo" + base64.b64encode(b"three"))
    places = [Place(str(path), "1", 4, 3), Place(str(path), "2", 7, 3), Place(str(path), "3", 10, 8, is_base64=True)]
    expected = [hashlib.sha256(content).hexdigest() for content in (b"ONE", b"two", b"three")]
    assert hexes(list(map(str, places)), memory) == expected
    assert hexes(list(map(str, places)), memory) == expected
    assert len(read) == 3


def test_what_cannot_be_read_is_told_by_index(files, memory, tmp_path):
    digests, errors = content_digests([files[0], str(tmp_path / "gone.jpg"), str(tmp_path)], memory)
    assert list(errors) == [1, 2]
    assert "gone.jpg: the file cannot be read (No such file or directory)" in str(errors[1])
    assert not digests[1].any()
    assert digests[0].any()


def test_odd_names_are_names(tmp_path, memory, read):
    path = os.fsdecode(bytes(tmp_path) + b"/\xff#1@2+3.jpg")
    Path(path).write_bytes(b"x")
    for _ in range(2):
        assert hexes([str(Place(path))], memory) == [hashlib.sha256(b"x").hexdigest()]
    assert len(read) == 1


def test_many_are_taken_a_slice_at_a_time(files, memory, read, monkeypatch):
    expected = hexes(files, memory)
    monkeypatch.setattr(image_contents, "_SLICE", 2)
    assert hexes(files, memory) == expected
    assert len(read) == 3


def test_a_damaged_memory_is_made_anew(files, memory, read, caplog):
    hexes(files, memory)
    memory.write_bytes(b"no database" * 1000)
    caplog.set_level(logging.WARNING)
    hexes(files, memory)
    assert len(read) == 6
    [warning] = caplog.messages
    assert warning.startswith(f"{memory} is damaged (")


@pytest.mark.parametrize("fault", ["damaged", "locked"])
def test_a_memory_that_opens_and_cannot_be_read_is_told(files, memory, read, monkeypatch, fault):
    hexes(files, memory)
    # Opening reads no more than a page, and not at the same moment.
    monkeypatch.setattr(image_contents, "_connect", lambda memory: sqlite3.connect(memory, timeout=0))
    with contextlib.closing(sqlite3.connect(memory)) as other:
        if fault == "locked":
            other.execute("BEGIN EXCLUSIVE")
        else:
            memory.write_bytes(b"no database" * 1000)
        with pytest.raises(DataError, match=r"contents\.sqlite: cannot be read \(.*\): see that .* or remove it"):
            content_digests(files, memory)


def test_a_memory_that_cannot_be_written_is_told(files, tmp_path):
    (tmp_path / "cache").write_text("no folder")
    with pytest.raises(DataError, match="cannot be written"):
        content_digests(files, tmp_path / "cache" / "contents.sqlite")

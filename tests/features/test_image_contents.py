"""Digests of images' contents."""

import base64
import hashlib
import os
from pathlib import Path

import pytest

from vlm_caption.data import Place
from vlm_caption.features.contents import content_digests


@pytest.fixture
def files(tmp_path):
    """Paths of three files."""
    paths = [tmp_path / f"{name}.jpg" for name in "abc"]
    for path in paths:
        path.write_bytes(path.name.encode())
    return [str(path) for path in paths]


def hexes(images) -> list[str]:
    digests, errors = content_digests(images)
    assert not errors
    return [bytes(digest).hex() for digest in digests]


def test_is_the_sha256_of_the_bytes_in_order(files):
    expected = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in files]
    assert hexes(files) == expected
    assert hexes(files[::-1]) == expected[::-1]


@pytest.mark.parametrize("change", ["touched", "other bytes", "other bytes, its time set back"])
def test_a_file_that_changed_is_read_again(files, change):
    hexes(files)
    path = Path(files[1])
    status = path.stat()
    if change != "touched":
        path.write_bytes(b"B.jpg")  # as long as before
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns if "back" in change else status.st_mtime_ns + 1))
    assert hexes(files)[1] == hashlib.sha256(path.read_bytes()).hexdigest()


def test_stretches_of_a_file_have_digests_of_their_own(tmp_path):
    path = tmp_path / "shard.tar"
    path.write_bytes(b"headONEtwo" + base64.b64encode(b"three"))
    places = [Place(str(path), "1", 4, 3), Place(str(path), "2", 7, 3), Place(str(path), "3", 10, 8, is_base64=True)]
    expected = [hashlib.sha256(content).hexdigest() for content in (b"ONE", b"two", b"three")]
    assert hexes(list(map(str, places))) == expected


def test_what_cannot_be_read_is_told_by_index(files, tmp_path):
    digests, errors = content_digests([files[0], str(tmp_path / "gone.jpg"), str(tmp_path)])
    assert list(errors) == [1, 2]
    assert "gone.jpg: the file cannot be read (No such file or directory)" in str(errors[1])
    assert not digests[1].any()
    assert digests[0].any()


def test_odd_names_are_names(tmp_path):
    path = os.fsdecode(bytes(tmp_path) + b"/\xff#1@2+3.jpg")
    Path(path).write_bytes(b"x")
    assert hexes([str(Place(path))]) == [hashlib.sha256(b"x").hexdigest()]

"""Files that a command is going to write: what would be lost is refused."""

import os
from pathlib import Path

import pytest

from vlm_caption.core.errors import ConfigError
from vlm_caption.core.outputs import BAD_IMAGES, PAGE, Output, check_outputs

PAGE_HEAD = "<!doctype html>\n<html>"


def test_files_of_their_own_kind_and_new_ones_can_be_written(tmp_path):
    page, bad = tmp_path / "page.html", tmp_path / "bad.jsonl"
    page.write_text(PAGE_HEAD)
    bad.touch()
    check_outputs(
        [Output("--html", page, PAGE), Output("--bad-images", bad, BAD_IMAGES), Output("--o", tmp_path / "new", PAGE)],
        inputs=[tmp_path / "photo.jpg", None],
    )
    assert page.read_text() == PAGE_HEAD
    assert {path.name for path in tmp_path.iterdir()} == {"page.html", "bad.jsonl"}


@pytest.mark.parametrize("content", [b"\xff\xd8\xff\xe0 a picture", b"image,caption\n", b'{"image": "a.jpg"}\n'])
def test_a_file_of_another_kind_is_refused_and_stays(tmp_path, content):
    path = tmp_path / "mine"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"^--bad-images .*mine holds something else, which would be lost"):
        check_outputs([Output("--bad-images", path, BAD_IMAGES)])
    assert path.read_bytes() == content


def test_a_file_that_is_named_twice_is_refused(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "x")
    outputs = [Output("--output", tmp_path / "x", None), Output("--html", tmp_path / "link", PAGE)]
    with pytest.raises(ConfigError, match=r"^--html .*link is the file of --output too: give each a file of its own"):
        check_outputs(outputs)


def test_an_input_is_refused(tmp_path):
    (tmp_path / "x").touch()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ConfigError, match=r"is read by the same command: name another file"):
        check_outputs([Output("--html", tmp_path / "folder" / ".." / "x", PAGE)], [tmp_path / "x"])


def test_what_is_no_regular_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", tmp_path, Path(os.devnull)):
        with pytest.raises(ConfigError, match="is no regular file: name another one"):
            check_outputs([Output("--html", path, PAGE)])


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"^--html: there is no folder .*none \(No such file"):
        check_outputs([Output("--html", tmp_path / "none" / "page.html", PAGE)])
    check_outputs([Output("--html", tmp_path / "none" / "new" / "page.html", PAGE, makes_folders=True)])
    assert list(tmp_path.iterdir()) == []

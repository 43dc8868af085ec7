"""Captions kept as they are written."""

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from vlm_caption.captioning.caption_file import CaptionFile, as_line
from vlm_caption.captioning.captioner import Caption
from vlm_caption.core.text import readable
from vlm_caption.data import DataError

ONE = Caption("a.jpg", "A dog.", -0.5, True, "sha256:0")
TWO = Caption("b\udcff.jpg", "Zwei Kühe.", -1.25, False)  # a byte that is no text


def test_captions_are_on_the_disk_when_they_are_added(tmp_path):
    file = CaptionFile(tmp_path / "new" / "captions.jsonl")
    file.add(ONE)
    file.add(TWO)
    entries = [json.loads(line) for line in (tmp_path / "new" / "captions.jsonl").read_text().splitlines()]
    assert [tuple(entry.values()) for entry in entries] == [
        ("a.jpg", "A dog.", -0.5, None, True, "sha256:0"),
        ("b\\xff.jpg", "Zwei Kühe.", -1.25, None, False, ""),
    ]


def test_what_is_there_is_done(tmp_path):
    for _ in range(2):
        with CaptionFile(tmp_path / "captions.jsonl") as file:
            for caption in (ONE, TWO):
                if readable(caption.image) not in file.done:
                    file.add(caption)
            assert file.done == {"a.jpg", "b\\xff.jpg"}
    assert (tmp_path / "captions.jsonl").read_text() == as_line(ONE) + as_line(TWO)


@pytest.mark.parametrize("left", range(1, len(as_line(TWO)) - 1))
def test_a_line_that_a_kill_cut_short_is_written_again(tmp_path, left):
    path = tmp_path / "captions.jsonl"
    path.write_text(as_line(ONE) + as_line(TWO)[:left])
    with CaptionFile(path) as file:
        assert file.done == {"a.jpg"}
        file.add(TWO)
    assert path.read_text() == as_line(ONE) + as_line(TWO)


def test_a_whole_last_line_without_its_end_is_kept(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text(as_line(ONE) + as_line(TWO).rstrip("\n"))
    with CaptionFile(path) as file:
        assert file.done == {"a.jpg", "b\\xff.jpg"}
        file.add(ONE)
    assert path.read_text() == as_line(ONE) + as_line(TWO) + as_line(ONE)


def test_lines_of_an_earlier_version_are_captions(tmp_path):
    path = tmp_path / "captions.jsonl"
    path.write_text('{"image": "a.jpg", "caption": "A dog.", "score": -0.5}\n')
    with CaptionFile(path) as file:
        assert file.done == {"a.jpg"}


@pytest.mark.parametrize(
    "line",
    [
        "image,caption",
        "[]",
        '{"image": "a.jpg"}',
        '{"image": 1, "caption": "A dog."}',
        "",
        '{"image": "a.jpg", "caption": "A dog."}',
        '{"image": "a.jpg", "caption": "A dog.", "score": -1, "licence": "CC0"}',
        '{"image": "a.jpg", "caption": "A dog.", "score": "high"}',
        "[" * 100_000,
    ],
)
def test_another_file_is_refused_and_stays_as_it_is(tmp_path, line):
    path = tmp_path / "table.csv"
    path.write_text(as_line(ONE) + line + "\n")
    with pytest.raises(DataError, match=r"table.csv: line 2 is no caption with its image: name another file"):
        CaptionFile(path)
    assert path.read_text() == as_line(ONE) + line + "\n"


def test_a_folder_is_refused(tmp_path):
    with pytest.raises(DataError, match="captions cannot be kept there"):
        CaptionFile(tmp_path)


@pytest.mark.parametrize(
    "content",
    [
        '[{"image_id": 1, "caption": "A dog."}]',
        '{"model": 1}',
        "a",
        '{"image": "a.jpg", "caption": "A dog."}',
        '{"image": "a.jpg", "label": 3',
    ],
)
def test_another_file_without_a_last_newline_is_refused_as_well(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match="line 1 is no caption with its image"):
        CaptionFile(path)
    assert path.read_text() == content


def test_captions_that_are_added_together_are_written_together(tmp_path, monkeypatch):
    file = CaptionFile(tmp_path / "captions.jsonl")
    written = []
    monkeypatch.setattr(file, "_write", written.append)
    file.add(ONE, TWO)
    assert written == [(as_line(ONE) + as_line(TWO)).encode()]


def test_a_second_process_is_refused(tmp_path):
    path = tmp_path / "captions.jsonl"
    with CaptionFile(path) as file:
        file.add(ONE)
        code = "import sys; from vlm_caption.captioning.caption_file import CaptionFile; CaptionFile(sys.argv[1])"
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, cwd=tmp_path)
    assert "another process writes captions there: wait for it, or name another file." in done.stderr
    assert list(tmp_path.iterdir()) == [path]  # no lock is left
    with CaptionFile(path) as file:
        assert file.done == {"a.jpg"}


def test_closing_twice_leaves_the_next_owner_its_lock(tmp_path):
    path = tmp_path / "captions.jsonl"
    first = CaptionFile(path)
    first.close()
    with CaptionFile(path):
        first.close()
        assert (tmp_path / ".captions.jsonl.lock").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_device_is_refused():
    with pytest.raises(DataError, match=r"/dev/full: captions cannot be kept there \(it is no regular file"):
        CaptionFile("/dev/full")


def test_a_full_disk_leaves_whole_lines(tmp_path, monkeypatch):
    path = tmp_path / "captions.jsonl"
    with CaptionFile(path) as file:
        file.add(ONE)

        class FullDisk:
            """Takes ten bytes and is full."""

            def __init__(self, file):
                self.file = file

            def __getattr__(self, name):
                return getattr(self.file, name)

            def write(self, content):
                if len(content) < len(as_line(TWO)):
                    raise OSError(errno.ENOSPC, "No space left on device")
                return self.file.write(content[:10])

        monkeypatch.setattr(file, "_file", FullDisk(file._file))
        with pytest.raises(DataError, match=r"captions\.jsonl: captions cannot be kept there \(No space left"):
            file.add(TWO)
    assert path.read_text() == as_line(ONE)

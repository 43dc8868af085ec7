"""`write_text`: the whole file, or the old one and nothing beside it."""

from pathlib import Path

import pytest

from vlm_caption.core.files import remove_partials, write_text
from vlm_caption.training.checkpoints import remove_leftovers


def test_a_file_is_replaced_and_nothing_is_left_beside_it(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    write_text(path, "Grüße 狗\n")
    assert path.read_text(encoding="utf-8") == "Grüße 狗\n"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_leaves_the_old_file_alone(tmp_path):
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(UnicodeEncodeError):
        write_text(path, "half a character \udcff")
    assert (path.read_text(), list(tmp_path.iterdir())) == ("old", [path])
    write_text(path, "half a character \udcff", errors="replace")
    assert path.read_text() == "half a character ?"


def test_a_name_may_be_as_long_as_the_file_system_takes(tmp_path, monkeypatch):
    path = tmp_path / ("狗" * 83 + ".txt")  # 253 bytes
    write_text(path, "old")
    assert path.read_text() == "old"
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, target: None)  # as if killed in between
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        write_text(path, "half")
    assert len(list(tmp_path.iterdir())) == 2
    remove_partials([path])
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_sweeps_up_what_a_killed_one_was_writing(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", lambda self, target: None)  # as if killed in between
        patch.setattr(Path, "unlink", lambda self, missing_ok=False: None)
        write_text(tmp_path / "a.txt", "half")
    assert len(list(tmp_path.iterdir())) == 1
    remove_leftovers(tmp_path)
    assert list(tmp_path.iterdir()) == []

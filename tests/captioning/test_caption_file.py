"""Captions kept as they are written."""

import json

import pytest

from vlm_caption.captioning.caption_file import CaptionFile, as_line
from vlm_caption.captioning.captioner import Caption
from vlm_caption.data import DataError

ONE, TWO = Caption("a.jpg", "A dog.", -0.5), Caption("b\udcff.jpg", "Zwei Kühe.", -1.25)


def test_captions_are_on_the_disk_when_they_are_added(tmp_path):
    file = CaptionFile(tmp_path / "new" / "captions.jsonl")
    file.add(ONE)
    file.add(TWO)
    entries = [json.loads(line) for line in (tmp_path / "new" / "captions.jsonl").read_text().splitlines()]
    assert [tuple(entry.values()) for entry in entries] == [
        ("a.jpg", "A dog.", -0.5),
        ("b\udcff.jpg", "Zwei Kühe.", -1.25),
    ]


def test_what_is_there_is_done(tmp_path):
    for _ in range(2):
        with CaptionFile(tmp_path / "captions.jsonl") as file:
            for caption in (ONE, TWO):
                if caption.image not in file.done:
                    file.add(caption)
            assert file.done == {"a.jpg", "b\udcff.jpg"}
    assert (tmp_path / "captions.jsonl").read_text() == as_line(ONE) + as_line(TWO)


@pytest.mark.parametrize("left", range(1, len(as_line(TWO))))
def test_a_line_that_a_kill_cut_short_is_written_again(tmp_path, left):
    path = tmp_path / "captions.jsonl"
    path.write_text(as_line(ONE) + as_line(TWO)[:left])
    with CaptionFile(path) as file:
        assert file.done == {"a.jpg"}
        file.add(TWO)
    assert path.read_text() == as_line(ONE) + as_line(TWO)


@pytest.mark.parametrize(
    "line", ["image,caption", "[]", '{"image": "a.jpg"}', '{"image": 1, "caption": "A dog."}', ""]
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


@pytest.mark.parametrize("content", ['[{"image_id": 1, "caption": "A dog."}]', '{"model": 1}', "a"])
def test_another_file_without_a_last_newline_is_refused_as_well(tmp_path, content):
    path = tmp_path / "results.json"
    path.write_text(content)
    with pytest.raises(DataError, match="line 1 is no caption with its image"):
        CaptionFile(path)
    assert path.read_text() == content

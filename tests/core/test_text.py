"""Text from files, and text for messages and tables."""

import os

import pytest

from vlm_caption.core.errors import DataError
from vlm_caption.core.text import defuse_formula, preview, read_lines


@pytest.mark.parametrize("cell", ["=HYPERLINK(1)", "+1", "-1", "@SUM(1)", "\t=1", "\r=1"])
def test_a_formula_becomes_text(cell):
    assert defuse_formula(cell) == f"'{cell}"


@pytest.mark.parametrize("cell", ["", "A dog", "a=b", "'=1"])
def test_text_stays_as_it_is(cell):
    assert defuse_formula(cell) == cell


def test_a_preview_is_short_however_large_the_value():
    nested: list = []
    for _ in range(100_000):
        nested = [nested]
    assert len(preview(nested)) <= 80
    assert len(preview("x" * 10**6)) <= 80
    assert preview({"a": [1, None]}) == "{'a': [1, None]}"


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="not a regular file"):
        list(read_lines(tmp_path / "pipe"))

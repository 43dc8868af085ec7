"""Captions as CSV, Parquet and COCO's results: what is written can be read, here and by others."""

import csv
import json

import pyarrow.parquet as pq
import pytest

from vlm_caption.captioning.tables import COLUMNS, read_table, write_table
from vlm_caption.core.errors import DataError
from vlm_caption.metrics import read_results

CAPTIONS = [
    ("COCO_val2014_000000391895.jpg", 'A man, "standing".', -0.5, 0.75, True, "sha256:0"),
    ("=a\n.jpg", "=HYPERLINK(1)", -1.25, None, False, ""),
    ("'b.jpg", "Zwei Kühe.", -2.0, 0.0, True, ""),
]
ENTRIES = [dict(zip(COLUMNS, values, strict=True)) for values in CAPTIONS]


@pytest.mark.parametrize("kind", ["csv", "parquet", "coco"])
class TestTables:
    def test_are_read_as_they_were_written(self, tmp_path, kind):
        for entries in (ENTRIES, []):
            write_table(tmp_path / "table", kind, entries)
            assert read_table(tmp_path / "table", kind) == entries

    def test_that_are_not_there_or_empty_hold_no_captions(self, tmp_path, kind):
        assert read_table(tmp_path / "none", kind) == []
        (tmp_path / "empty").touch()
        assert read_table(tmp_path / "empty", kind) == []

    @pytest.mark.parametrize(
        "content", ["image,caption\na,b\n", '[{"image_id": 1, "caption": "a"}]', "[" * 100_000, "\0"]
    )
    def test_of_somebody_else_are_refused(self, tmp_path, kind, content):
        (tmp_path / "table").write_text(content)
        with pytest.raises(DataError, match=f"this is no {kind} file of captions: name another file"):
            read_table(tmp_path / "table", kind)

    def test_name_the_file_that_cannot_be_written(self, tmp_path, kind):
        (tmp_path / "table").mkdir()
        with pytest.raises(DataError, match="table: captions cannot be written there"):
            write_table(tmp_path / "table", kind, ENTRIES)


@pytest.mark.parametrize("kind", ["csv", "parquet", "coco"])
def test_captions_of_several_prompts_keep_them(tmp_path, kind):
    entries = [ENTRIES[0] | {"prompt": "=What?"}, ENTRIES[1]]
    write_table(tmp_path / "table", kind, entries)
    assert read_table(tmp_path / "table", kind) == entries


def test_coco_results_have_an_id_for_each_picture(tmp_path):
    names = ["a/1.jpg", "b/1.jpg", "a/2.jpg", "a/000000000007.jpg", "b/COCO_val2014_000000000008.jpg"]
    write_table(tmp_path / "r.json", "coco", [ENTRIES[0] | {"image": name} for name in names])
    assert list(read_results(tmp_path / "r.json")) == ["a/1.jpg", "b/1.jpg", "2.jpg", 7, 8]


def test_csv_holds_no_formula(tmp_path):
    write_table(tmp_path / "table.csv", "csv", ENTRIES)
    with (tmp_path / "table.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["caption"] for row in rows] == ['A man, "standing".', "'=HYPERLINK(1)", "Zwei Kühe."]
    assert rows[1]["image"] == "'=a\n.jpg"


def test_parquet_has_typed_columns(tmp_path):
    write_table(tmp_path / "table.parquet", "parquet", [])
    schema = pq.read_schema(tmp_path / "table.parquet")
    assert list(map(str, schema.types)) == ["string", "string", "double", "double", "bool", "string"]


def test_coco_results_can_be_scored(tmp_path):
    write_table(tmp_path / "results.json", "coco", ENTRIES[::2])
    assert read_results(tmp_path / "results.json") == {391895: 'A man, "standing".', "'b.jpg": "Zwei Kühe."}
    assert json.loads((tmp_path / "results.json").read_text())[0]["image"] == "COCO_val2014_000000391895.jpg"

"""Data that is damaged, or made to do harm: a sentence for each, and no more lost than what is bad."""

import io
import json
import os
import tarfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlm_caption.data import DataError, load_captions, open_corpus, open_vectors


@pytest.fixture
def photo():
    file = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(file, "PNG")
    return file.getvalue()


def write_parquet(path, rows, captions=None):
    captions = captions or ["A dog"] * len(rows)
    pq.write_table(pa.table({"image": rows, "caption": captions}), path)
    return path


@pytest.mark.parametrize("path", ["/etc/passwd", "/dev/zero", "../a.png"])
def test_a_row_of_parquet_names_no_file_outside_its_folder(tmp_path, photo, path):
    (tmp_path / "a.png").write_bytes(photo)
    (tmp_path / "corpus").mkdir()
    rows = [{"bytes": None, "path": path}, {"bytes": photo, "path": None}]
    table = write_parquet(tmp_path / "corpus" / "t.parquet", rows)
    problems = []
    assert len(load_captions(table, dev_share=0, on_problem=problems.append)) == 1
    assert "leads out of the folder" in problems[0].reason


def test_a_row_of_parquet_may_name_a_file_in_its_folder(tmp_path, photo):
    (tmp_path / "a.png").write_bytes(photo)
    table = write_parquet(tmp_path / "t.parquet", [{"bytes": None, "path": "a.png"}])
    assert load_captions(table, dev_share=0)[0]["image"] == str(tmp_path / "a.png")


def test_a_caption_of_parquet_that_is_not_utf8_costs_its_row(tmp_path, photo):
    binary = pa.array([b"A dog", b"A caf\xe9"], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, binary.buffers())
    table = write_parquet(tmp_path / "t.parquet", [photo, photo + b"2"], text)
    problems = []
    dataset = load_captions(table, dev_share=0, on_problem=problems.append)
    assert dataset["captions"][:] == [["A dog"]]
    assert problems[0].where.endswith("t.parquet, row 2")


def test_a_number_of_5000_digits_in_a_stray_file_does_no_harm(tmp_path, photo):
    (tmp_path / "a.png").write_bytes(photo)
    (tmp_path / "captions.csv").write_text("image,caption\na.png,A dog\n")
    (tmp_path / "captions_x.json").write_text('{"images": [' + "9" * 5000 + "]}")
    (tmp_path / "dataset.json").write_text("[" * 100_000)
    assert load_captions(tmp_path, dev_share=0)["captions"][:] == [["A dog"]]


@pytest.mark.parametrize("text", [b"[" * 100_000, b'{"caption": ' + b"9" * 5000 + b"}", b'{"caption": "\xff"}', b"{"])
def test_a_bad_sample_of_a_tar_costs_no_other(tmp_path, photo, text):
    with tarfile.open(tmp_path / "0.tar", "w") as tar:
        for name, content in (("1.png", photo), ("1.json", text), ("2.png", photo), ("2.txt", b"A dog")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    problems = []
    assert load_captions(tmp_path, dev_share=0, on_problem=problems.append)["captions"][:] == [["A dog"]]
    assert [problem.where.rpartition(", ")[2] for problem in problems] == ["1.png"]


@pytest.mark.parametrize("header", [b"{'descr': '<f8', 'shape': (3,", b"(" * 200, b"{'descr': '<f8'", b"\xff" * 40])
def test_a_npy_file_with_a_bad_header_is_named(tmp_path, header):
    header += b" " * (117 - len(header)) + b"\n" if len(header) < 117 else b"\n"
    content = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    (tmp_path / "v.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"v\.npy: this is no array"):
        open_vectors(tmp_path / "v.npy")


def test_a_pipe_beside_a_picture_is_not_waited_for(tmp_path, photo):
    for name in "ab":
        (tmp_path / f"{name}.png").write_bytes(photo)
    (tmp_path / "a.txt").write_text("A dog")
    os.mkfifo(tmp_path / "b.txt")
    problems = []
    assert len(load_captions(tmp_path, dev_share=0, on_problem=problems.append)) == 1
    assert "not a regular file" in problems[0].reason


def test_names_that_are_too_long_are_told(tmp_path, photo):
    with pytest.raises(DataError, match="no such file or folder"):
        open_corpus(tmp_path / ("x" * 300))
    (tmp_path / "a.png").write_bytes(photo)
    (tmp_path / "t.csv").write_text(f"image,caption\na.png,A dog\n{'x' * 300}.png,A cat\n")
    missing = []
    assert len(load_captions(tmp_path / "t.csv", dev_share=0, on_problem=missing.append)) == 1
    assert missing[0].reason == "the image is missing"


class TestDamagedCache:
    @pytest.fixture
    def table(self, tmp_path, photo):
        (tmp_path / "a.png").write_bytes(photo)
        (tmp_path / "t.csv").write_text("image,caption\na.png,A dog\n")
        return tmp_path / "t.csv"

    @pytest.mark.parametrize("name", ["0.arrow", "report.json", "problems.jsonl"])
    @pytest.mark.parametrize("damage", [lambda content: content[:-9], lambda content: b"{", lambda content: None])
    def test_is_made_anew(self, table, cache, name, damage):
        load_captions(table, dev_share=0)
        [file] = cache.glob(f"datasets/table-*/{name}")
        content = damage(file.read_bytes())
        file.unlink() if content is None else file.write_bytes(content)
        for _ in range(2):
            assert load_captions(table, dev_share=0)["captions"][:] == [["A dog"]]

    def test_of_unpacked_parquet_is_made_anew(self, tmp_path, photo, cache):
        table = write_parquet(tmp_path / "t.parquet", [photo])
        load_captions(table, dev_share=0)
        [file] = cache.glob("datasets/parquet/**/*.arrow")
        file.write_bytes(file.read_bytes()[:-40])
        assert load_captions(table, dev_share=0.0, caption_column="caption")["captions"][:] == [["A dog"]]


class TestBadRecords:
    @pytest.fixture
    def table(self, tmp_path, photo):
        for name in "abc":
            (tmp_path / f"{name}.png").write_bytes(photo)
        rows = [{"image": "a.png", "caption": "A dog"}, {"image": "b.png", "caption": ""}]
        rows += [{"image": "c.png", "caption": None}]
        lines = [json.dumps(row).encode() for row in rows] + [b'{"image": "a.png", "caption": "caf\xe9"}']
        (tmp_path / "t.jsonl").write_bytes(b"\n".join(lines))
        return tmp_path / "t.jsonl"

    def test_end_the_reading(self, table):
        with pytest.raises(DataError, match=r"\(2 more of its records have problems\)"):
            load_captions(table, dev_share=0)

    def test_are_skipped_and_listed_where_that_is_asked_for(self, table, caplog):
        caplog.set_level("WARNING", "vlm_caption")
        dataset = load_captions(table, dev_share=0, on_bad_record="skip")
        assert dataset["captions"][:] == [["A dog"]]
        [message] = caplog.messages
        assert "left out 3 bad records, first: " in message
        lines = Path(message.rpartition(" ")[2]).read_text().splitlines()
        reasons = [json.loads(line)["reason"] for line in lines]
        assert len(reasons) == 3
        assert any("UTF-8" in reason for reason in reasons)

"""What becomes of records: splits, cleaning, problems, and the cache that they are kept in."""

import base64
import io
import json
import multiprocessing
import tracemalloc
from pathlib import Path

import pytest
from PIL import Image

from vlm_caption.data import (
    Cleaning,
    DataError,
    Problem,
    Record,
    count_captions,
    load_captions,
    open_corpus,
    read_records,
    store,
)


def write_table(folder, *rows, name="any.jsonl"):
    folder.mkdir(exist_ok=True)
    for row in rows:
        if not (folder / row["image"]).exists() and "missing" not in row["image"]:
            Image.new("RGB", (2, 2)).save(folder / row["image"])
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def pairs(dataset):
    return [(Path(row["image"]).name, row["captions"]) for row in dataset]


@pytest.fixture
def table(tmp_path):
    return write_table(
        tmp_path / "corpus",
        {"image": "a.png", "caption": "A dog", "split": "train"},
        {"image": "b.png", "caption": "A cat", "split": "val"},
        {"image": "a.png", "caption": ["Dog", "A dog in the high grass"], "split": "train"},
        {"image": "c.png", "caption": "Bird", "split": "train"},
    )


def test_a_split_is_a_memory_mapped_file_in_the_cache(table, cache):
    dataset = load_captions(table)
    [file] = dataset.cache_files
    assert Path(file["filename"]).is_relative_to(cache / "datasets")
    assert count_captions(dataset) == 4


def test_reading_more_images_needs_no_more_memory(tmp_path):
    def peak(count: int) -> int:
        table = tmp_path / f"{count}.csv"
        rows = [f"{number}.jpg,A caption {'that is long ' * 40}{number}\n" for number in range(count)]
        table.write_text("image,caption\n" + "".join(rows))
        del rows
        tracemalloc.start()
        corpus = open_corpus(table, images=tmp_path, dev_share=0)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert corpus.splits == ["train"]
        return most

    peak(1)  # what is imported and remembered once
    assert peak(6000) < 1.3 * peak(2000)


class TestCache:
    @pytest.fixture
    def reads(self, monkeypatch):
        """How often a reader has run."""
        counts = []
        write = store._write
        monkeypatch.setattr(store, "_write", lambda *args: (counts.append(1), write(*args))[1])
        return counts

    def test_is_read_as_long_as_nothing_changes(self, table, reads):
        first = pairs(load_captions(table))
        assert pairs(load_captions(table)) == first
        assert pairs(load_captions(table, "val")) == [("b.png", ["A cat"])]
        assert len(reads) == 1

    def test_is_renewed_when_the_corpus_or_a_setting_changes(self, table, reads):
        load_captions(table)
        load_captions(table, cleaning=Cleaning(lower_case=True))
        assert len(reads) == 2
        table.write_text(table.read_text().replace("Bird", "Fish"))
        assert pairs(load_captions(table))[1] == ("c.png", ["Fish"])
        assert len(reads) == 3

    def test_notices_a_changed_text_beside_a_picture_and_a_new_picture(self, tmp_path):
        for name in "ab":
            Image.new("RGB", (2, 2)).save(tmp_path / f"{name}.png")
            (tmp_path / f"{name}.txt").write_text("One")
        assert pairs(load_captions(tmp_path, dev_share=0)) == [("a.png", ["One"]), ("b.png", ["One"])]
        (tmp_path / "b.txt").write_text("Two")
        assert pairs(load_captions(tmp_path, dev_share=0)) == [("a.png", ["One"]), ("b.png", ["Two"])]
        Image.new("RGB", (2, 2)).save(tmp_path / "c.png")
        with pytest.raises(DataError, match=r"c\.png: there is no caption"):
            load_captions(tmp_path)

    def test_finds_pictures_that_have_moved(self, tmp_path, reads):
        table = write_table(tmp_path / "corpus", {"image": "a.png", "caption": "A dog"})
        load_captions(table)
        (tmp_path / "corpus" / "photos").mkdir()
        (tmp_path / "corpus" / "a.png").rename(tmp_path / "corpus" / "photos" / "a.png")
        assert load_captions(table)[0]["image"] == str(tmp_path / "corpus" / "photos" / "a.png")
        assert len(reads) == 2

    def test_keeps_nothing_of_a_corpus_that_cannot_be_read(self, table, cache):
        table.write_text("{")
        for _ in range(2):
            with pytest.raises(DataError, match="line 1: this is not JSON"):
                load_captions(table)
        assert [path.name for path in (cache / "datasets").iterdir() if path.suffix != ".lock"] == []

    def test_that_cannot_be_written_is_told(self, table, tmp_path, monkeypatch):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("VLM_CAPTION_CACHE", str(tmp_path / "file"))
        with pytest.raises(DataError, match="VLM_CAPTION_CACHE chooses another folder"):
            load_captions(table)

    def test_is_written_by_one_of_several_processes(self, tmp_path, cache):
        rows = [{"image": f"{number}.png", "caption": f"Number {number}"} for number in range(300)]
        table = write_table(tmp_path / "corpus", *rows)
        context = multiprocessing.get_context("fork")
        both, found = context.Barrier(2), context.SimpleQueue()

        def read():
            both.wait()
            found.put(open_corpus(table)._was_there)

        processes = [context.Process(target=read) for _ in range(2)]
        for process in processes:
            process.start()
        assert sorted(found.get() for _ in processes) == [False, True]
        for process in processes:
            process.join()
        assert len(load_captions(table)) + len(load_captions(table, "dev")) == 300


class TestCleaning:
    def test_drops_captions_by_their_number_of_words_and_images_without_any(self, table, caplog):
        caplog.set_level("INFO", "vlm_caption")
        dataset = load_captions(table, cleaning=Cleaning(min_words=2, max_words=4))
        assert pairs(dataset) == [("a.png", ["A dog"])]
        assert caplog.messages == [
            f"{table}: left out 2 captions too short, 1 captions too long, 1 images without captions"
        ]

    def test_says_so_when_nothing_is_left(self, table):
        with pytest.raises(DataError, match="no image is in the split 'train'; splits that are there: none"):
            load_captions(table, cleaning=Cleaning(min_words=50))

    def test_reaches_every_caption(self, table):
        dataset = load_captions(table, cleaning=Cleaning(final_stop="add", lower_case=True))
        assert pairs(dataset) == [("a.png", ["a dog.", "dog.", "a dog in the high grass."]), ("c.png", ["bird."])]

    def test_of_empty_captions_is_asked_for(self, tmp_path):
        table = write_table(tmp_path / "corpus", {"image": "a.png", "caption": ["A dog", " "]})
        with pytest.raises(DataError, match=r"any\.jsonl, line 1: a caption is empty: .* data\.min_words 1"):
            load_captions(table)
        assert pairs(load_captions(table, cleaning=Cleaning(min_words=1))) == [("a.png", ["A dog"])]


class TestSplits:
    @pytest.fixture
    def many(self, tmp_path):
        return write_table(tmp_path / "corpus", *({"image": f"{n}.png", "caption": "x"} for n in range(200)))

    @pytest.mark.parametrize("share", [0.05, 0.3, 0.9])
    def test_are_cut_off_by_the_share(self, many, share):
        corpus = open_corpus(many, dev_share=share)
        train, dev = (set(corpus.load(split)["image"]) for split in ("train", "dev"))
        assert len(train) + len(dev) == 200
        assert not train & dev
        assert len(dev) == pytest.approx(200 * share, abs=20)

    def test_of_a_larger_share_hold_those_of_a_smaller_one(self, many):
        small, large = (set(load_captions(many, "dev", dev_share=share)["image"]) for share in (0.1, 0.2))
        assert small < large

    def test_are_not_cut_off_for_a_share_of_0(self, many):
        corpus = open_corpus(many, dev_share=0)
        assert corpus.splits == ["train"]
        assert len(corpus.load()) == 200

    def test_an_image_in_two_is_a_problem(self, tmp_path):
        rows = [("a.png", "train"), ("b.png", "val"), ("a.png", "val")]
        table = write_table(tmp_path / "corpus", *({"image": i, "caption": i, "split": s} for i, s in rows))
        with pytest.raises(
            DataError, match=r"line 3: the image a\.png is in the split 'val' here and in 'train' above"
        ):
            load_captions(table)

    def test_the_same_bytes_in_two_rows_are_one_image(self, tmp_path):
        file = io.BytesIO()
        Image.new("RGB", (5, 5)).save(file, "PNG")
        rows = [{"image": base64.b64encode(file.getvalue()).decode(), "caption": caption} for caption in ("A", "B")]
        table = tmp_path / "any.jsonl"
        table.write_text("".join(json.dumps(row) + "\n" for row in rows))
        assert load_captions(table)["captions"][:] == [["A", "B"]]


class TestProblems:
    @pytest.fixture
    def faulty(self, tmp_path):
        return write_table(
            tmp_path / "corpus",
            {"image": "a.png", "caption": "A dog", "split": "train"},
            {"image": "missing.png", "caption": "A cat", "split": "train"},
            {"image": "b.png", "caption": 7, "split": "train"},
            {"image": "c.png", "caption": "", "split": "val"},
            {"image": "d.png", "caption": "A bird", "split": "val"},
        )

    def test_are_yielded_by_the_reader_in_their_place(self, faulty):
        found = list(read_records(faulty))
        assert [type(record) for record in found] == [Record, Record, Problem, Record, Record]
        assert found[0] == Record(str(faulty.parent / "a.png"), ("A dog",), "a.png", f"{faulty}, line 1", "train")
        assert str(found[2]).startswith(f"{faulty}, line 3: the column 'caption' must hold")

    def test_of_a_split_are_told_and_left_out_where_they_are_asked_for(self, faulty):
        corpus = open_corpus(faulty)
        for _ in range(2):  # also from the cache
            told: list[Problem] = []
            assert pairs(corpus.load("train", on_problem=told.append)) == [("a.png", ["A dog"])]
            assert [problem.where.rpartition("/")[2] for problem in told] == ["any.jsonl, line 3", "missing.png"]
            assert {problem.split for problem in told} == {"train"}
        assert [problem.split for problem in corpus.problems()] == ["train", "val"]

    def test_end_the_reading_where_they_are_not(self, faulty):
        with pytest.raises(DataError, match="line 3: the column 'caption'"):
            load_captions(faulty)
        with pytest.raises(DataError, match="line 4: a caption is empty"):
            load_captions(faulty, "val")

    def test_are_counted_in_the_sentence(self, tmp_path):
        rows = [{"image": "a.png", "caption": None}] * 3
        with pytest.raises(DataError, match=r"line 1: .* \(2 more of its records have problems\)"):
            load_captions(write_table(tmp_path / "corpus", *rows))

"""Pictures that are missing or cannot be opened: limits, what is written down, and when there are too many."""

import json
import threading

import pytest
from PIL import Image

from vlm_caption.core.errors import ImageTooLargeError, TruncatedImageError
from vlm_caption.core.threads import map_in_threads
from vlm_caption.data import BadImages, DataError, PictureOpener, Place, check_pictures, open_corpus, open_place


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "bad_images.jsonl"


def entries(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


class TestFile:
    def test_is_written_as_bad_images_are_found(self, path):
        bad = BadImages(path)
        assert not path.parent.exists()  # nothing is bad yet
        bad.add("a.jpg", "cut")
        assert entries(path) == [{"file": "a.jpg", "reason": "cut"}]
        bad.add("shards/0.tar#b.jpg@512+99", "not a picture")
        assert entries(path)[1] == {"file": "shards/0.tar, b.jpg", "reason": "not a picture"}

    def test_a_second_run_repeats_nothing_and_keeps_the_order(self, path):
        first = BadImages(path)
        for name in ("b", "a", "\u0915\u2028"):
            first.add(name, "cut")
        before = path.read_bytes()
        second = BadImages(path)
        for name in ("a", "a", "b"):
            second.add(name, "cut")
            assert path.read_bytes() == before
        assert list(second.reasons) == ["a", "b"]

    def test_what_a_kill_cut_short_is_mended(self, path):
        BadImages(path).add("a", "cut")
        with path.open("ab") as file:
            file.write('{"file": "ü'.encode()[:-1])
        bad = BadImages(path)
        bad.add("b", "cut")
        assert [entry["file"] for entry in entries(path)] == ["a", "b"]

    def test_what_is_no_longer_bad_goes_in_the_end(self, path):
        first = BadImages(path)
        first.add("a", "cut")
        first.add("b", "cut")
        second = BadImages(path)
        second.add("b", "cut")
        assert len(entries(path)) == 2
        second.settle()
        assert entries(path) == [{"file": "b", "reason": "cut"}]
        BadImages(path).settle()
        assert list(path.parent.iterdir()) == []

    def test_that_cannot_be_written_is_a_sentence(self, tmp_path):
        (tmp_path / "run").write_text("a file")
        with pytest.raises(DataError, match=r"run/bad_images\.jsonl: bad pictures cannot be written down there \("):
            BadImages(tmp_path / "run" / "bad_images.jsonl").add("a", "cut")


class TestShare:
    def test_at_the_limit_a_run_goes_on_and_above_it_ends(self, path):
        bad = BadImages(path, max_share=0.05)
        bad.add("a", "missing")
        bad.expect(39)  # and that one
        bad.add("b", "cut")
        with pytest.raises(DataError) as caught:
            bad.add("c", "cut")
        assert str(caught.value) == (
            "at least 3 of 40 images are bad, more than data.max_bad_share 0.05 allows (first: a: missing; all so far "
            f"are in {path}): mend them, or raise data.max_bad_share"
        )
        assert len(entries(path)) == 3

    def test_missing_ones_alone_may_be_too_many(self):
        bad = BadImages(max_share=0)
        bad.add("a", "missing")
        with pytest.raises(DataError, match="at least 1 of 10 images are bad"):
            bad.expect(9)

    def test_further_pictures_are_added(self):
        bad = BadImages(max_share=0.05)
        bad.expect(100)
        for name in "abcde":
            bad.add(name, "cut")
        bad.expect(40)  # of which none is bad so far
        bad.add("f", "cut")
        bad.add("g", "cut")
        with pytest.raises(DataError, match="at least 8 of 140 images are bad"):
            bad.add("h", "cut")

    def test_an_image_counts_once(self):
        bad = BadImages(max_share=0.1)
        bad.expect(10)
        bad.add("a", "cut")
        bad.add("a", "cut")


def test_a_corpus_gives_its_missing_images_apart_from_its_problems(tmp_path):
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png")
    (tmp_path / "captions.csv").write_text("image,caption,split\na.png,A,train\nb.png,B,train\n")
    missing = []
    dataset = open_corpus(tmp_path).load("train", on_missing=missing.append)
    assert dataset["captions"][:] == [["A"]]
    assert [(problem.where, problem.reason) for problem in missing] == [
        (str(tmp_path / "b.png"), "the image is missing")
    ]
    with (tmp_path / "captions.csv").open("a") as file:
        file.write("a.png,,train\n")
    with pytest.raises(DataError, match="a caption is empty"):
        open_corpus(tmp_path).load("train", on_missing=missing.append)


def test_every_picture_is_checked_and_each_fault_told_with_its_row(tmp_path):
    names = [str(tmp_path / f"{number}.png") for number in range(30)]
    for name in names:
        Image.new("RGB", (20, 10)).save(name)
    with open(names[7], "r+b") as file:  # noqa: PTH123
        file.truncate(50)
    Image.new("RGB", (30, 10)).save(names[21])
    found = []
    check_pictures(names, PictureOpener(max_pixels=200), lambda row, error: found.append((row, type(error))))
    assert found == [(7, TruncatedImageError), (21, ImageTooLargeError)]


def test_the_limit_on_bytes_holds_inside_larger_files_before_anything_is_read(tmp_path):
    file = tmp_path / "all.bin"
    file.write_bytes(b"x" * 1000)
    opener = PictureOpener(max_bytes=300)
    for place in (Place(str(file), "a", 1, 301), Place(str(file), "a", 1), Place(str(file), "a", 0, 408, True)):
        with pytest.raises(ImageTooLargeError, match="more than 300 bytes, which is the limit"):
            opener(str(place))
    with pytest.raises(ImageTooLargeError, match="more than 300 bytes"):
        opener(str(file))
    assert len(open_place(str(Place(str(file), "a", 1, 300)), 300).read()) == 300
    assert len(Place(str(file), "a", 0, 400, is_base64=True).read(300)) == 300


class TestThreads:
    def test_results_come_in_order_and_items_are_taken_as_needed(self):
        taken = []

        def items():
            for number in range(1000):
                taken.append(number)
                yield number

        results = map_in_threads(lambda number: number * 2, items())
        assert [next(results) for _ in range(3)] == [0, 2, 4]
        assert len(taken) < 1000
        assert list(results)[-1] == 1998

    def test_an_error_ends_it_and_the_threads(self):
        before = threading.active_count()
        results = map_in_threads(lambda number: 1 / number, [1, 0, 1])
        with pytest.raises(ZeroDivisionError):
            list(results)
        assert threading.active_count() == before

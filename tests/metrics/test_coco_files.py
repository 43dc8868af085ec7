"""COCO's files: what is read, and what is wrong with them in one sentence."""

import json

import pytest

from vlm_caption.data import DataError
from vlm_caption.metrics import pair_captions, read_references, read_results


def result(image, caption="A dog."):
    return {"image_id": image, "caption": caption}


def annotations(images, captions):
    return {"images": [{"id": image} for image in images], "annotations": [result(*pair) for pair in captions]}


@pytest.fixture
def file(tmp_path):
    def write(content):
        path = tmp_path / "file.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return write


class TestReadResults:
    def test_gives_the_caption_of_each_image(self, file):
        assert read_results(file([result(7, "Two"), result("x", "One")])) == {7: "Two", "x": "One"}

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ("[{", "line 1: not JSON"),
            ({"a": 1}, "expected a list of entries with image_id and caption, found an object with 'a'"),
            ("null", "expected a list of entries with image_id and caption, found a NoneType"),
            (
                [result(1), {"caption": "x"}],
                "1 entries without an image_id that is a number or text, entry number 2",
            ),
            ([result(True)], "1 entries without an image_id"),
            ([result(n, None) for n in range(5)], "5 captions missing or no text, image id 0, 1, 2, …"),
            ([result(1, ["A dog"])], "1 captions missing or no text, image id 1"),
            ([result(1), result(2), result(1)], "1 captions of one image: keep one an image, image id 1"),
        ],
    )
    def test_refuses_what_is_malformed(self, file, content, complaint):
        with pytest.raises(DataError) as caught:
            read_results(file(content))
        assert "file.json" in str(caught.value)
        assert complaint in str(caught.value)

    def test_an_empty_caption_is_one(self, file):
        assert read_results(file([result(1), result(2, "")])) == {1: "A dog.", 2: ""}

    def test_names_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(DataError, match=r"none\.json: the file cannot be read"):
            read_results(tmp_path / "none.json")


class TestReadReferences:
    def test_gives_references_in_the_order_of_the_images(self, file):
        found = read_references(file(annotations([2, 1], [(1, "a"), (2, "b"), (1, "c")])))
        assert found == {2: ["b"], 1: ["a", "c"]}
        assert list(found) == [2, 1]

    @pytest.mark.parametrize(
        ("content", "complaint"),
        [
            ([result(1)], "expected an object with the lists images and annotations, found a list"),
            ({"annotations": []}, "found an object with 'annotations'"),
            (
                {"images": [{"id": 1}, {}], "annotations": []},
                "1 images without an id that is a number or text, number 2",
            ),
            (annotations([1, 1], [(1, "a")]), "1 images listed more than once, id 1"),
            (annotations([1, 2, 3], [(1, "a")]), "2 images without references, id 2, 3"),
            (annotations([1], [(1, "a"), (5, "b")]), "1 annotations of images that are not listed, image id 5"),
            (annotations([1], [(1, "")]), "1 empty captions, image id 1"),
            (annotations([1], [(1, 3)]), "1 captions missing or no text, image id 1"),
            (annotations([], []), "there are no images"),
        ],
    )
    def test_refuses_what_is_malformed(self, file, content, complaint):
        with pytest.raises(DataError) as caught:
            read_references(file(content))
        assert complaint in str(caught.value)


class TestPairCaptions:
    def test_puts_the_same_images_side_by_side(self):
        pairs = pair_captions({1: "a", 2: "b"}, {2: ["B"], 1: ["A", "AA"]})
        assert (pairs.image_ids, pairs.captions, pairs.references) == ([2, 1], ["b", "a"], [["B"], ["A", "AA"]])
        assert (pairs.missing, pairs.extra) == ([], [])

    def test_refuses_missing_and_extra_images(self):
        with pytest.raises(DataError) as caught:
            pair_captions({1: "a", 9: "x"}, {1: ["A"], **{n: ["N"] for n in range(2, 7)}})
        assert str(caught.value) == (
            "5 images have no caption, id 2, 3, 4, …; 1 captions have no references, image id 9; "
            "to score the other 1 images, allow missing ones"
        )

    def test_scores_the_intersection_and_says_so_where_allowed(self):
        pairs = pair_captions({1: "a", 9: "x"}, {1: ["A"], 2: ["B"]}, allow_missing=True)
        assert (pairs.image_ids, pairs.missing, pairs.extra) == ([1], [2], [9])

    @pytest.mark.parametrize("allow_missing", [False, True])
    def test_says_when_ids_differ_in_kind_only(self, allow_missing):
        with pytest.raises(DataError, match="ids are numbers in one file and text in the other"):
            pair_captions({"1": "a"}, {1: ["A"]}, allow_missing)

    def test_refuses_files_with_nothing_in_common(self):
        with pytest.raises(DataError, match=r"no image has both a caption and references$"):
            pair_captions({3: "a"}, {1: ["A"]}, allow_missing=True)

"""The caption that agrees most with the others, and the document frequencies that this is measured with."""

import json

import pytest

from vlm_caption.captioning.consensus import FREQUENCIES_NAME, DocumentFrequencies, checkpoint_frequencies
from vlm_caption.core.errors import ConfigError, DataError
from vlm_caption.metrics.cider_d import CiderD

CORPUS = [["A dog runs.", "the dog"], ["a cat sits on a mat"], ["a man stands"]] * 6


@pytest.fixture(scope="module")
def frequencies():
    return DocumentFrequencies.count(CORPUS)


def test_n_grams_are_counted_once_for_each_image(frequencies):
    counts = frequencies.table["counts"]
    assert (counts["a"], counts["dog"], counts["a dog"], counts["cat sits on a"]) == (18, 6, 6, 6)
    assert frequencies.table["images"] == 18
    assert "runs ." not in counts


def test_the_choice_is_that_of_cider_with_the_other_captions_as_references(frequencies):
    captions = ["a cat sits", "a dog runs", "the dog runs", "a dog runs fast", "a man"]
    scorer = CiderD([["a dog runs", "the dog"], ["a cat sits on a mat"], ["a man stands"]] * 6)
    scores = [scorer.score([own], [other for other in captions if other != own])[0] for own in captions]
    assert frequencies.rank(captions)[0] == scores.index(max(scores)) == 1


def test_equal_captions_agree_and_the_first_of_equals_is_chosen(frequencies):
    assert frequencies.rank(["a cat sits", "a man stands", "a man stands"])[0] == 1
    assert frequencies.rank(["one", "two"])[0] == 0
    assert frequencies.rank(["alone"])[0] == 0


def test_captions_are_ranked_by_their_agreement_and_equal_ones_keep_their_order(frequencies):
    captions = ["tree", "the dog runs", "a dog runs", "", "bird", "a dog runs fast"]
    assert frequencies.rank(captions) == [2, 1, 5, 0, 4, 3]


def test_an_empty_caption_is_chosen_only_if_all_are(frequencies):
    assert frequencies.rank(["", "", "a dog"])[0] == 2
    assert frequencies.rank(["", " "])[0] == 0


def test_what_is_saved_beside_a_checkpoint_is_found_there(frequencies, tmp_path):
    assert frequencies.save(tmp_path) == tmp_path / FREQUENCIES_NAME
    assert checkpoint_frequencies(str(tmp_path)).table == frequencies.table
    others = DocumentFrequencies.count([["another"]])
    others.save(tmp_path)
    assert checkpoint_frequencies(str(tmp_path)).table == others.table
    with pytest.raises(ConfigError, match=r"There is no document_frequencies\.json beside the checkpoint"):
        checkpoint_frequencies(str(tmp_path / "none"))


def test_the_lines_of_a_text_file_are_counted(tmp_path):
    file = tmp_path / "captions.txt"
    file.write_text("A dog.\n\nA cat.\n" * 5)
    loaded = DocumentFrequencies.load(file)
    assert loaded.table == DocumentFrequencies.count([["A dog."], ["A cat."]] * 5).table


@pytest.mark.parametrize(
    "content", ["", "[]", "{}", json.dumps({"tokenizer": "ptb", "images": 1, "counts": {"a": 2}}), "no JSON"]
)
def test_another_file_is_named(tmp_path, content):
    file = tmp_path / "table.json"
    file.write_text(content)
    with pytest.raises(DataError, match=r"table\.json"):
        DocumentFrequencies.load(file)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match=r"empty\.txt: the frequencies of n-grams cannot be read"):
        DocumentFrequencies.load(tmp_path / "empty.txt")

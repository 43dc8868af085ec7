"""How varied captions are."""

import numpy as np
import pytest

from vlm_caption.metrics import measure_diversity


class TestMeasureDiversity:
    def test_counts_words_pairs_and_lengths(self):
        found = measure_diversity(["A dog runs.", "A dog sits!", "dogs"])
        assert found.vocabulary == 5  # a dog runs sits dogs
        assert found.distinct_1 == pytest.approx(5 / 7)
        assert found.distinct_2 == pytest.approx(3 / 7)  # a dog, dog runs, dog sits
        assert (found.mean_length, list(found.lengths)) == (pytest.approx(7 / 3), [3, 3, 1])

    def test_captions_that_are_all_alike_have_little_variety(self):
        same, different = ["a dog runs"] * 4, ["a dog runs", "two cats sit", "one red car", "some green trees"]
        assert measure_diversity(same).distinct_1 < measure_diversity(different).distinct_1 == 1

    def test_a_caption_is_seen_whatever_its_case_and_punctuation(self):
        found = measure_diversity(["A dog runs.", "A dog sits"], training_captions=["a dog , runs", "a cat sits"])
        assert found.unseen == 0.5
        assert list(found.is_unseen) == [False, True]

    def test_without_training_captions_none_is_seen_or_unseen(self):
        found = measure_diversity(["a dog"])
        assert found.unseen is found.is_unseen is None

    def test_finds_captions_caught_in_a_loop(self):
        loop = "a cat on top of a hat on top of a hat on top of a hat"
        good = "a cat sits on top of a hat on a table in a room"
        found = measure_diversity([loop, good])
        # 12 runs of four words, 6 of them different
        assert list(found.repetitions) == pytest.approx([6 / 12, 0])
        assert found.repeated_4grams == pytest.approx(np.mean(found.repetitions))

    def test_captions_without_words_are_no_trouble(self):
        found = measure_diversity(["", "..."])
        assert (found.distinct_1, found.vocabulary, found.mean_length, found.repeated_4grams) == (0, 0, 0, 0)

    def test_refuses_no_captions(self):
        with pytest.raises(ValueError, match="no captions"):
            measure_diversity([])

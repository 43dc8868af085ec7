"""CIDEr-D of single captions against pycocoevalcap, which scores a whole split."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_caption.metrics.cider_d import CiderD
from vlm_caption.metrics.ngram_scores import score_cider

WORDS = st.lists(st.sampled_from(["a", "dog", "runs", "red", "on", "grass"]), min_size=1, max_size=9).map(" ".join)
IMAGES = st.lists(st.tuples(WORDS, st.lists(WORDS, min_size=1, max_size=4)), min_size=2, max_size=6)


@settings(max_examples=60, deadline=None)
@given(IMAGES)
def test_a_split_scored_by_its_own_frequencies_has_pycocoevalcaps_scores(images):
    captions, references = [caption for caption, _ in images], [texts for _, texts in images]
    scorer = CiderD(references)
    ours = [scorer.score([caption], texts)[0] for caption, texts in images]
    assert ours == pytest.approx(score_cider(captions, references).tolist(), abs=1e-9)


def test_document_frequencies_are_those_of_the_corpus_and_not_of_what_is_scored():
    corpus = [["a dog runs"], ["a dog sits"], ["a cat sits"], ["two men play"]]
    scorer = CiderD(corpus)
    dog, cat = scorer.score(["a dog sits", "a cat sits"], ["a dog runs"])
    assert dog > cat > 0  # alone with its image, every n-gram would weigh nothing


def test_no_references_are_refused():
    with pytest.raises(ValueError, match="no references"):
        CiderD([])

"""VQA accuracy: normalisation and values as the official evaluation has them."""

import pytest

from vlm_caption.metrics.vqa import normalize_answer, score_vqa


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ("Yes.", "yes"),
        ("The dog", "dog"),
        ("two dogs and ten cats", "2 dogs and 10 cats"),
        ("none", "0"),
        ("eleven", "eleven"),
        ("dont know", "don't know"),
        ("couldnt've", "couldn't've"),
        ("couldn'tve", "couldn't've"),
        ("it's", "it's"),
        ("black/white", "black white"),  # a mark between letters parts words
        ("black, white", "black white"),
        ("t-shirt", "t shirt"),
        ("1,000", "1000"),
        ("3.5", "3.5"),
        ("10 a.m.", "10 am"),
        ("stop\nsign\t", "stop sign"),
        ("what?!", "what"),
        ("", ""),
    ],
)
def test_answers_are_compared_as_the_official_code_does(answer, expected):
    assert normalize_answer(answer) == expected


@pytest.mark.parametrize(("agreeing", "accuracy"), [(0, 0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1), (9, 1)])
def test_the_mean_over_ten_choices_of_nine_people(agreeing, accuracy):
    people = ["red"] * agreeing + [f"other {number}" for number in range(10 - agreeing)]
    assert score_vqa(["Red"], [people]) == pytest.approx([accuracy])


def test_peoples_punctuation_counts_only_where_they_agree():
    assert list(score_vqa(["t-shirt"], [["t-shirt"] * 9 + ["shirt"]])) == [1]
    assert list(score_vqa(["t-shirt"], [["t-shirt"] * 10])) == [0]
    assert list(score_vqa(["yes."], [["yes"] * 10])) == [1]
    assert list(score_vqa(["yes"], [["Yes"] * 10])) == [1]


def test_other_numbers_of_answers_are_refused():
    with pytest.raises(ValueError, match="needs 10 answers to a question, not 3"):
        score_vqa(["a"], [["a"] * 3])

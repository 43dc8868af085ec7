"""Which tokens scores are made of, and scores of text without spaces."""

import pytest

from vlm_caption.metrics import choose_tokenizer, measure_diversity, score, tokenize_characters

CHINESE = [["一只狗在草地上奔跑。", "一只棕色的狗跑过草地"], ["一个女人骑着自行车", "女人在街上骑车。"]]


@pytest.mark.parametrize(
    ("texts", "tokenizer"),
    [
        (["A dog runs."], "ptb"),
        (["Ein Hund läuft", "Собака бежит", "개가 달린다", "कुत्ता दौड़ता है"], "ptb"),
        (["一只狗在草地上奔跑"], "characters"),
        (["犬が走っている", "ネコ"], "characters"),
        (["สุนัขวิ่งบนหญ้า"], "characters"),
        (["A dog 狗 runs", "42"], "ptb"),
        (["一只狗和一台 TV", ""], "characters"),
        ([""], "ptb"),
    ],
)
def test_the_tokenizer_is_that_of_most_letters(texts, tokenizer):
    assert choose_tokenizer(texts) == tokenizer


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("一只狗、在跑。", "一 只 狗 在 跑"),
        ("一台 iPhone 15 手机", "一 台 iphone 15 手 机"),
        ("两台TV。", "两 台 tv"),
        ("コーヒー", "コ ー ヒ ー"),
        ("か\u3099", "が"),  # composed
        ("ที่นี่", "ที่ นี่"),  # signs stay on their letters
        ("A dog's bone", "a dog s bone"),
        ("。、", ""),
    ],
)
def test_characters_without_punctuation_and_words_of_other_scripts(text, tokens):
    assert tokenize_characters([text]) == [tokens]


def test_chinese_captions_have_scores_that_depend_on_their_references():
    captions = ["一只狗在草地上跑", "一个女人在街上骑自行车"]
    right = score(captions, CHINESE, ["bleu", "rouge_l", "cider", "meteor"])
    wrong = score(captions, CHINESE[::-1], ["bleu", "rouge_l", "cider"])
    assert right.tokenizer == "characters"
    assert right.corpus["bleu_4"] > 0.4
    assert right.corpus["cider"] > 10 * wrong.corpus["cider"]
    assert right.not_computed == {"meteor": "METEOR is for English, and the references are not"}
    assert right.notes[0].endswith("scores and lengths count characters, not words.")


def test_english_captions_of_chinese_references_are_still_measured_by_characters():
    assert score(["a dog", "a woman"], CHINESE, ["bleu"]).tokenizer == "characters"
    assert score(["一只狗"], [["a dog"]], ["bleu"]).tokenizer == "ptb"


def test_diversity_counts_characters_too():
    found = measure_diversity(["一只狗。", "一只猫"], ["一只狗"], tokenizer="characters")
    assert (found.mean_length, found.vocabulary, found.unseen) == (3, 4, 0.5)

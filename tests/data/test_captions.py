import unicodedata
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from vlm_caption.data import CaptionChoice, Cleaning, clean_caption

# Mostly what the cleaning acts on, so that the properties meet it.
captions = st.text(st.sampled_from("ab3'sé .,;:!?()\"-\t\n\u00a0\u2003İ。…\u0301") | st.characters(), max_size=40)
final_stops = st.sampled_from(["keep", "add", "remove"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A child in an entry way .", "A child in an entry way."),
        ("A dog , a ball , and a cat .", "A dog, a ball, and a cat."),
        ("  two\tdogs \r\n run\u00a0away  ", "two dogs run away"),
        ("Air ! Really ?", "Air! Really?"),
        ("one ; two : three", "one; two: three"),
        ("a person on ski 's looks", "a person on ski's looks"),
        ("a lens ( almost fish eye ) of a boy", "a lens (almost fish eye) of a boy"),
        ("wait . . .", "wait..."),
        ("", ""),
        (" \n ", ""),
    ],
)
def test_a_tokenizers_spacing_is_undone(text, expected):
    assert clean_caption(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "A clean caption, with 3.5 marks.",
        "a .5 litre bottle",
        "wait ... what",
        "a smile :)",
        "a slip 'n' slide",
        "the letter 's' here",
        'a black " ADHD " t-shirt',
        "a man - old - stands",
        "Ångström, ﬁne ① 漢字",
        "می\u200cخواهم",  # noqa: RUF001 - a joiner that parts letters
        "क्\u200dष और क्\u200cष",
        "a family \U0001f468\u200d\U0001f469\u200d\U0001f467 with a \u2764\ufe0f",
        "ภาพสุนัขวิ่ง",
        "כלב רץ בדשא",
        "tiếng Việt",
    ],
)
def test_everything_else_stays(text):
    assert clean_caption(text) == text


def test_accents_are_composed():
    assert clean_caption("cafe\u0301 \u1100\u1161") == "café 가"


@pytest.mark.parametrize(
    ("text", "added", "removed"),
    [
        ("A dog", "A dog.", "A dog"),
        ("A dog .", "A dog.", "A dog"),
        ("A dog!", "A dog!", "A dog!"),
        ("wait...", "wait...", "wait..."),
        ('a "sign"', 'a "sign"', 'a "sign"'),
        ("犬が走る。", "犬が走る。", "犬が走る"),
        ("एक कुत्ता।", "एक कुत्ता।", "एक कुत्ता"),
        (".", ".", "."),
        ("", "", ""),
    ],
)
def test_a_final_full_stop_is_added_or_removed(text, added, removed):
    assert clean_caption(text, final_stop="add") == added
    assert clean_caption(text, final_stop="remove") == removed


def test_capitals_become_small_in_every_script():
    assert clean_caption("A DOG, ЁЖ, ΑΣ", lower_case=True) == "a dog, ёж, ας"


@given(captions, final_stops, st.booleans())
@example("A ?।", "remove", False)
def test_cleaning_twice_changes_nothing_more(text, final_stop, lower_case):
    cleaned = clean_caption(text, final_stop, lower_case)
    assert clean_caption(cleaned, final_stop, lower_case) == cleaned
    assert Cleaning(final_stop, lower_case).clean(text) == cleaned


@given(captions)
def test_all_characters_but_whitespace_stay_in_order(text):
    composed = unicodedata.normalize("NFC", text)
    assert "".join(clean_caption(text).split()) == "".join(composed.split())


@given(captions, final_stops)
def test_a_caption_does_not_become_empty(text, final_stop):
    assert bool(clean_caption(text, final_stop)) == bool(text.split())


@given(captions)
def test_whitespace_is_single_spaces_inside(text):
    assert clean_caption(text) == " ".join(clean_caption(text).split())


def row(number: int, count: int = 5) -> dict:
    return {"image": f"photos/{number}.jpg", "captions": [f"{number} {letter}" for letter in "abcdefg"[:count]]}


def test_all_or_the_first_caption_is_chosen():
    assert CaptionChoice("all")(row(1)) == row(1)["captions"]
    assert CaptionChoice("first")(row(1)) == ["1 a"]


def test_a_sampled_caption_is_one_of_the_images_and_depends_on_seed_epoch_and_image_alone():
    def sample(seed: int, epoch: int) -> list[str]:
        choice = CaptionChoice("sample", seed)
        choice.epoch = epoch
        chosen = [choice(row(number)) for number in range(50)]
        assert all(len(captions) == 1 and captions[0] in row(n)["captions"] for n, captions in enumerate(chosen))
        return [caption for [caption] in chosen]

    assert sample(0, 3) == sample(0, 3)
    assert len({tuple(sample(seed, epoch)) for seed in range(3) for epoch in range(3)}) == 9


def test_samples_are_drawn_evenly():
    choice = CaptionChoice("sample")
    counts = Counter()
    for choice.epoch in range(200):
        counts.update(caption[-1] for number in range(10) for caption in choice(row(number)))
    assert set(counts) == set("abcde")
    assert all(320 < count < 480 for count in counts.values())  # 400, give or take four standard deviations

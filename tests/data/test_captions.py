import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_caption.data import clean_caption

# Mostly what the cleaning acts on, so that the properties meet it.
captions = st.text(st.sampled_from("ab3'sé .,;:!?()\"-\t\n\u00a0\u2003") | st.characters(), max_size=40)


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
    ],
)
def test_everything_else_stays(text):
    assert clean_caption(text) == text


@given(captions)
def test_cleaning_twice_changes_nothing_more(text):
    assert clean_caption(clean_caption(text)) == clean_caption(text)


@given(captions)
def test_all_characters_but_whitespace_stay_in_order(text):
    assert "".join(clean_caption(text).split()) == "".join(text.split())


@given(captions)
def test_whitespace_is_single_spaces_inside(text):
    assert clean_caption(text) == " ".join(clean_caption(text).split())

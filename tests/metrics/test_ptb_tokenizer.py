"""Tokens without Java, against tokens with it."""

import json
import shutil

import pytest
from hard_cases import FIXTURE, LINE_BREAKS, hard_sentences, lex_with_java
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_caption.metrics import tokenize
from vlm_caption.metrics.ptb_tokenizer import lex

CASES = [json.loads(line) for line in FIXTURE.read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def oracle():
    if shutil.which("java") is None:
        pytest.skip("there is no java on the PATH")
    pytest.importorskip("pycocoevalcap", reason="pycocoevalcap, which holds Stanford's tokenizer, is not installed")
    return lex_with_java


def assert_same(lines, oracle):
    for line, ours, theirs in zip(lines, lex(lines), oracle(lines), strict=True):
        assert ours == theirs, line


class TestAgreesWithStanford:
    def test_on_the_recorded_hard_cases(self):
        assert len(CASES) == 400
        found = list(lex([case["text"] for case in CASES]))
        assert found == [case["tokens"] for case in CASES]

    @pytest.mark.java
    def test_on_fresh_hard_cases(self, oracle):
        assert_same(hard_sentences(seed=6, count=5000), oracle)

    @pytest.mark.java
    @settings(max_examples=4, deadline=None)
    @given(st.lists(st.text(st.characters(exclude_categories=["Cs"], exclude_characters=LINE_BREAKS)), min_size=200))
    def test_on_any_characters(self, lines):
        if shutil.which("java") is None:
            pytest.skip("there is no java on the PATH")
        assert_same(lines, lex_with_java)

    @pytest.mark.java
    @pytest.mark.flickr8k
    def test_on_all_captions_of_flickr8k(self, oracle, flickr8k_dir):
        lines = (flickr8k_dir / "Flickr8k.token.txt").read_text(encoding="utf-8").splitlines()
        captions = [line.split("\t", 1)[1] for line in lines]
        assert_same(captions, oracle)

    @pytest.mark.java
    @pytest.mark.magic
    def test_on_captions_and_references_of_coco(self, oracle, magic_dir):
        results = json.loads((magic_dir / "magic_mscoco_results.json").read_text())
        references = json.loads((magic_dir / "magic_mscoco_references.json").read_text())["annotations"]
        for entries in (results, references):
            assert_same([entry["caption"].replace("\n", " ") for entry in entries], oracle)


class TestTokenize:
    @pytest.mark.parametrize(
        ("caption", "tokens"),
        [
            ("A dog's bone isn't theirs, is it?", "a dog 's bone is n't theirs is it"),
            ("You cannot  GONNA it .", "you can not gon na it"),
            ("Mr. Smith's 5 7/8 U.S. T-shirts -- (two) ...", "mr. smith 's 5\u00a07/8 u.s. t-shirts -lrb- two -rrb-"),
            ("R&amp;D costs £5 or €4.50", "r&d costs # 5 or $ 4.50"),
            ("café 日本語 😀 x\u200by", "café 日本語 x y"),
            ("", ""),
            (" .\n! ", ""),
        ],
    )
    def test_splits_lowers_and_drops_punctuation(self, caption, tokens):
        assert tokenize([caption]) == [tokens]

    def test_how_a_caption_ends_depends_on_the_next_as_in_the_original(self):
        assert tokenize(["Plan B.", "A dog"]) == ["plan b", "a dog"]
        assert tokenize(["Plan B.", "Two dogs"]) == ["plan b.", "two dogs"]

    @pytest.mark.parametrize("tail", ["<a b='", "x.[^x=", "<a b='\r", "etc.", "C\r"])
    def test_no_token_runs_over_the_end_of_its_caption(self, tail):
        first, second = tokenize([f"two dogs {tail}", "one cat' >  <>] and more"])
        assert first.startswith("two dogs")
        assert second.startswith("one cat")
        assert second.endswith("and more")

    @pytest.mark.parametrize("line_break", [*LINE_BREAKS, "\r\n"])
    def test_line_breaks_within_a_caption_are_spaces(self, line_break):
        assert tokenize([f"a{line_break}dog", "two"]) == ["a dog", "two"]

    def test_tokenizing_twice_changes_nothing_more_in_plain_captions(self):
        captions = ["a man riding a wave on top of a surfboard", "two dogs play in the snow"]
        assert tokenize(tokenize(captions)) == captions

    def test_half_characters_are_no_trouble(self):
        assert tokenize(["a \ud83d dog"]) == ["a dog"]

    def test_capital_sigma_is_lowered_as_java_does(self):
        assert tokenize(["ΟΔΟΣ ΟΔΟΣ-C ΣΑ Σ"]) == ["οδος οδοσ-c σα σ"]  # noqa: RUF001

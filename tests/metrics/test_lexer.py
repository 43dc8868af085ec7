"""The longest-match lexer, against what lexer generators promise."""

import random
import re

import pytest

from vlm_caption.metrics.lexer import Automaton, CharSet, Lexer


def matched(patterns, text, **definitions):
    """Index of the winning pattern and the text that it matches."""
    index, end = Automaton(patterns, definitions).match_longest(text, 0)
    return index, text[:end]


class TestAutomaton:
    def test_takes_the_longest_match_not_the_first(self):
        assert matched(["a|ab", "abc"], "abcd") == (1, "abc")
        assert matched(["(a|ab)(c|bcd)"], "abcd") == (0, "abcd")

    def test_takes_the_first_pattern_of_those_that_match_equally_far(self):
        assert matched(["[a-z]+", "cat"], "cat") == (0, "cat")
        assert matched(["cat", "[a-z]+"], "cat") == (0, "cat")

    def test_says_that_nothing_matches(self):
        assert matched(["b"], "abc") == (-1, "")

    def test_letters_match_in_both_cases_but_not_in_brackets(self):
        assert matched(["mr"], "MR") == (0, "MR")
        assert matched(["[m]r"], "MR") == (-1, "")
        assert matched(["kiss"], "\u212a\u0130\u017fS") == (0, "\u212a\u0130\u017fS")

    @pytest.mark.parametrize(
        ("pattern", "text", "found"),
        [
            ("a{2,3}", "aaaa", "aaa"),
            ("a{2}", "a", ""),
            ("(ab)*c", "ababc", "ababc"),
            ("x?y+", "yyx", "yy"),
            (r"\.\{[^\]]+\]", ".{a-b]", ".{a-b]"),
            (r"[\-\t]+", "-\t-a", "-\t-"),
            ("{D}+(e{D}+)?", "12e5", "12e5"),
            ("{S}.", "éx", "éx"),
        ],
    )
    def test_reads_the_notation(self, pattern, text, found):
        assert matched([pattern], text, D="[0-9]", S=CharSet([(0xE0, 0xFF)]))[1] == found

    @pytest.mark.parametrize("pattern", ["(a", "a)", "[a", "a\\"])
    def test_refuses_what_is_malformed(self, pattern):
        with pytest.raises(ValueError, match=re.escape(repr(pattern))):
            Automaton([pattern], {})

    def test_agrees_with_re_on_what_matches(self):
        generator = random.Random(5)
        for _ in range(60):
            parts = ["a", "b", "(a|bb)", "(ab?)*", "[^a]", "b+", "|", "(b|a){1,2}"]
            pattern = "".join(generator.choices(parts, k=5))
            automaton, compiled = Automaton([pattern], {}), re.compile(pattern)
            for _ in range(20):
                text = "".join(generator.choice("abc") for _ in range(6))
                expected = [end for end in range(1, 7) if compiled.fullmatch(text, 0, end)]
                assert automaton.match_all(text, 0, 6) == expected, (pattern, text)


class TestLexer:
    def test_context_counts_for_the_match_and_is_not_in_the_token(self):
        lexer = Lexer([("[a-z]+", ""), ("a", "b!")], {})
        assert lexer.match("ab!", 0) == (1, 1)
        assert lexer.match("ab?", 0) == (0, 2)

    def test_parts_after_the_longest_token(self):
        assert Lexer([("a+", "a*b")], {}).match("aaab", 0) == (0, 3)


class TestCharSet:
    def test_complement_holds_the_rest(self):
        some = CharSet([(0x61, 0x63), (0x62, 0x66), (0, 0x10)])
        assert some.ranges() == [(0, 0x10), (0x61, 0x66)]
        assert all((chr(code) in some) != (chr(code) in some.complement()) for code in range(0x100))
        assert some.complement().complement().ranges() == some.ranges()

"""A longest-match lexer whose automaton is built while it reads.

A lexer generator (lex, flex, JFlex) has its own semantics: of all rules the one with the longest match wins, the first
written among equals, and what must follow a token (its trailing context) counts into the length. `re` takes the first
alternative that matches, so such a grammar is no `re` pattern. Here the patterns become one nondeterministic automaton
(Thompson, "Regular Expression Search Algorithm", CACM 1968), and its deterministic states are made only where a text
leads (Aho, Sethi and Ullman, "Compilers", 1986, section 3.7, "lazy transition evaluation").

Patterns are written in JFlex's notation under `%caseless`: a letter stands for both its cases, except in `[...]`;
`{NAME}` for a definition; `{2,4}` repeats; `.` is anything but a newline; blanks count.
"""

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence

# JFlex takes for a case of a letter whatever Java maps to it: the Kelvin sign, the long s, the Turkish i with and
# without its dot.
_MORE_CASES = {"k": "\u212a", "s": "\u017f", "i": "\u0130\u0131"}
_ESCAPES = {"t": "\t", "n": "\n", "r": "\r", "f": "\f"}
_LAST = 0x10FFFF


class CharSet:
    """A set of characters: sorted, disjoint ranges of code points."""

    __slots__ = ("bounds",)

    def __init__(self, ranges: Iterable[tuple[int, int]]):
        """Takes the first and the last code point of each range, in any order; ranges may overlap."""
        bounds: list[int] = []  # the code points at which membership changes
        for first, last in sorted(ranges):
            if bounds and first <= bounds[-1]:
                bounds[-1] = max(bounds[-1], last + 1)
            else:
                bounds += [first, last + 1]
        self.bounds = bounds

    @classmethod
    def of(cls, characters: str) -> "CharSet":
        """The set of the characters in a string."""
        return cls((ord(character), ord(character)) for character in characters)

    def __contains__(self, character: str) -> bool:
        return bisect_right(self.bounds, ord(character)) % 2 == 1

    def ranges(self) -> list[tuple[int, int]]:
        """The first and the last code point of each range, in order."""
        return [(first, end - 1) for first, end in zip(self.bounds[::2], self.bounds[1::2], strict=True)]

    def complement(self) -> "CharSet":
        """Every other character of Unicode."""
        edges = [0, *self.bounds, _LAST + 1]
        return CharSet((first, end - 1) for first, end in zip(edges[::2], edges[1::2], strict=True) if first < end)


class _State(dict):
    """A deterministic state: character to next state, filled when first asked. Empty subsets are the dead state."""

    __slots__ = ("accepts", "automaton", "subset")

    def __init__(self, automaton: "Automaton", subset: frozenset[int]):
        self.automaton = automaton
        self.subset = subset
        self.accepts = min((automaton.finals[node] for node in subset if node in automaton.finals), default=-1)

    def __missing__(self, character: str) -> "_State":
        edges = self.automaton.edges
        targets = {target for node in self.subset for chars, target in edges[node] if character in chars}
        state = self[character] = self.automaton.get_state(targets)
        return state


class Automaton:
    """What a list of patterns matches, and which of them.

    Args:
        patterns: in JFlex's notation; the earlier one wins where two match the same text.
        definitions: what `{NAME}` stands for: a pattern or a `CharSet`.

    Raises:
        ValueError: if a pattern is malformed.
    """

    def __init__(self, patterns: Sequence[str], definitions: Mapping[str, "str | CharSet"]):
        self.edges: list[list[tuple[CharSet, int]]] = []
        self.finals: dict[int, int] = {}
        self._empty: list[list[int]] = []  # transitions without a character
        self._states: dict[frozenset[int], _State] = {}
        starts = []
        for index, pattern in enumerate(patterns):
            start, end = _Parser(self, definitions).parse(pattern)
            starts.append(start)
            self.finals[end] = index
        self.start = self.get_state(starts)

    def add_node(self) -> int:
        """A new node of the nondeterministic automaton, without edges."""
        self.edges.append([])
        self._empty.append([])
        return len(self.edges) - 1

    def connect(self, source: int, target: int) -> None:
        """Lets `source` reach `target` without a character."""
        self._empty[source].append(target)

    def get_state(self, nodes: Iterable[int]) -> _State:
        """The deterministic state of these nodes and of all they reach without a character."""
        reached, pending = set(), list(nodes)
        while pending:
            node = pending.pop()
            if node not in reached:
                reached.add(node)
                pending += self._empty[node]
        # Nodes that only pass on say nothing about what comes next.
        subset = frozenset(node for node in reached if self.edges[node] or node in self.finals)
        if subset not in self._states:
            self._states[subset] = _State(self, subset)
        return self._states[subset]

    def match_longest(self, text: str, start: int) -> tuple[int, int]:
        """Index of the pattern with the longest match at `start`, and where it ends; -1 and `start` without one."""
        state, best, end = self.start, -1, start
        for position in range(start, len(text)):
            state = state[text[position]]
            if not state.subset:
                break
            if state.accepts >= 0:
                best, end = state.accepts, position + 1
        return best, end

    def match_all(self, text: str, start: int, stop: int) -> list[int]:
        """Where the matches that begin at `start` end, up to `stop`, in order."""
        state, ends = self.start, []
        for position in range(start, stop):
            state = state[text[position]]
            if state.accepts >= 0:
                ends.append(position + 1)
        return ends


class Lexer:
    """The first token of a text by a list of patterns with trailing contexts.

    Args:
        patterns: pairs of what a token looks like and what must follow it, which may be empty.
        definitions: as for `Automaton`.
    """

    def __init__(self, patterns: Sequence[tuple[str, str]], definitions: Mapping[str, "str | CharSet"]):
        wholes = [f"({token})({context})" if context else token for token, context in patterns]
        self._whole = Automaton(wholes, definitions)
        self._parts = {
            index: (Automaton([token], definitions), Automaton([context], definitions))
            for index, (token, context) in enumerate(patterns)
            if context
        }

    def match(self, text: str, start: int) -> tuple[int, int]:
        """Index of the pattern that matches farthest, context included, and where its token ends.

        A match that parts into token and context in several ways is parted after the longest token, as JFlex does.
        Without a match the index is -1.
        """
        index, end = self._whole.match_longest(text, start)
        if index in self._parts:
            token, context = self._parts[index]
            stop = end
            end = next(
                middle
                for middle in reversed(token.match_all(text, start, stop))
                if stop in context.match_all(text, middle, stop)
            )
        return index, end


class _Parser:
    """Builds the nodes of one pattern: alternatives of sequences of repeated atoms."""

    def __init__(self, automaton: Automaton, definitions: Mapping[str, "str | CharSet"]):
        self.automaton = automaton
        self.definitions = definitions

    def parse(self, pattern: str) -> tuple[int, int]:
        """First and last node of a pattern."""
        self.pattern, self.position = pattern, 0
        nodes = self.parse_alternatives()
        if self.position < len(pattern):
            raise ValueError(f"{pattern!r}: nothing opens the bracket at {self.position}")
        return nodes

    def peek(self) -> str:
        return self.pattern[self.position : self.position + 1]

    def take(self) -> str:
        if self.position >= len(self.pattern):
            raise ValueError(f"{self.pattern!r} ends too soon")
        self.position += 1
        return self.pattern[self.position - 1]

    def parse_alternatives(self) -> tuple[int, int]:
        start, end = self.automaton.add_node(), self.automaton.add_node()
        while True:
            first, last = self.parse_sequence()
            self.automaton.connect(start, first)
            self.automaton.connect(last, end)
            if self.peek() != "|":
                return start, end
            self.take()

    def parse_sequence(self) -> tuple[int, int]:
        start = end = self.automaton.add_node()
        while self.peek() not in ("", "|", ")"):
            first, last = self.parse_repeated()
            self.automaton.connect(end, first)
            end = last
        return start, end

    def parse_repeated(self) -> tuple[int, int]:
        begin = self.position
        first, last = self.parse_atom()
        least, most = self.parse_count()
        if (least, most) == (1, 1):
            return first, last
        begin_of_atom, end_of_count = begin, self.position
        copies = [(first, last)]
        while len(copies) < (most or max(least, 1)):
            self.position = begin_of_atom
            copies.append(self.parse_atom())
        self.position = end_of_count
        start, end = self.automaton.add_node(), self.automaton.add_node()
        previous = start
        for number, (first, last) in enumerate(copies):
            if number >= least:
                self.automaton.connect(previous, end)
            self.automaton.connect(previous, first)
            previous = last
        self.automaton.connect(previous, end)
        if most is None:
            self.automaton.connect(copies[-1][1], copies[-1][0])
        return start, end

    def parse_count(self) -> tuple[int, int | None]:
        counts = {"*": (0, None), "+": (1, None), "?": (0, 1)}
        if self.peek() in counts and self.peek():
            return counts[self.take()]
        if self.peek() == "{" and self.pattern[self.position + 1].isdigit():
            close = self.pattern.index("}", self.position)
            least, comma, most = self.pattern[self.position + 1 : close].partition(",")
            self.position = close + 1
            return int(least), int(most) if comma else int(least)
        return 1, 1

    def parse_atom(self) -> tuple[int, int]:
        character = self.take()
        if character == "(":
            nodes = self.parse_alternatives()
            if self.take() != ")":
                raise ValueError(f"{self.pattern!r}: a bracket is not closed")
            return nodes
        if character == "[":
            return self.add_set(self.parse_class())
        if character == "{":
            close = self.pattern.index("}", self.position)
            definition = self.definitions[self.pattern[self.position : close]]
            self.position = close + 1
            if isinstance(definition, CharSet):
                return self.add_set(definition)
            return _Parser(self.automaton, self.definitions).parse(definition)
        if character == ".":
            return self.add_set(CharSet.of("\n").complement())
        if character == "\\":
            character = self.take()
            character = _ESCAPES.get(character, character)
        lower = character.lower()
        return self.add_set(CharSet.of(lower + character.upper() + _MORE_CASES.get(lower, "")))

    def parse_class(self) -> CharSet:
        negated = self.peek() == "^"
        if negated:
            self.take()
        ranges = []
        while self.peek() != "]":
            first = self.take_member()
            last = first
            if self.peek() == "-":
                self.take()
                last = self.take_member()
            ranges.append((ord(first), ord(last)))
        self.take()
        return CharSet(ranges).complement() if negated else CharSet(ranges)

    def take_member(self) -> str:
        character = self.take()
        if character != "\\":
            return character
        character = self.take()
        return _ESCAPES.get(character, character)

    def add_set(self, characters: CharSet) -> tuple[int, int]:
        start, end = self.automaton.add_node(), self.automaton.add_node()
        self.automaton.edges[start].append((characters, end))
        return start, end

"""The words of a search as pieces of SQL: conditions on a row `e` of `events`, and its rank.

In: words, and the parameters of a statement, which grow. Out: text. Nothing is executed.

Two columns answer. `e.search` holds the words as PostgreSQL's parser sees them; it is NULL where nothing may be found.
`run_grams(e.content)` is no column but the expression of a partial index: only a statement that says the condition of
that index letter by letter can use it, so it stands in every condition that does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Final, NamedTuple

from relay.query.conditions import Parameters
from relay.query.words import RUN, Word, grams

PREFIX_MIN: Final = 2
"""A last word of fewer characters is only itself: one letter begins too many words."""

# A word that the parser may give as a whole and in parts. There is nothing to escape in it for a `tsquery`, which takes
# no word above 2046 bytes.
_COMPOUND: Final = re.compile(r"(?=.*[-/@])[^'\\\s]{2,400}")

# What a word gives that is found by its text alone: as much as the parser's rank gives for a word that stands once.
_CONTAINED_RANK: Final = "0.06"

# The condition of the index, in words that the planner knows nothing about: it would take "has such characters" and
# "has this pair of them" for independent, and both together for ten times as rare as they are.
_HAS_RUNS: Final = (
    "e.search IS NOT NULL AND octet_length(e.content) <> char_length(e.content) "
    f"AND substring(e.content, '[{RUN}]') IS NOT NULL"
)


class _Contained(NamedTuple):
    """A word that stands in the text: `text` decides, `condition` also lets the index find the candidates."""

    condition: str
    text: str


class Terms:
    """The words together. What they add to `parameters` stands there from the start, used or not."""

    def __init__(self, searched: Sequence[Word], parameters: Parameters) -> None:
        self._phrases: list[str] = []
        self._contained: list[_Contained] = []
        self._exact: list[str] = []
        for word in searched:
            if word.pieces:
                self._contained.append(_contained(word, parameters))
                continue
            parameter = parameters.add(word.text)
            phrase = _phrase(parameter)
            if word is searched[-1] and len(word.text) >= PREFIX_MIN:
                # Of a word and its beginning a rank counts one; who wrote the word itself is to come first.
                self._exact.append(f"ts_rank(e.search, {phrase})")
                phrase = _or_longer(parameter, word.text)
            self._phrases.append(phrase)

    @property
    def ranks(self) -> bool:
        """Whether rows with all of the words may differ in rank."""
        return bool(self._phrases)

    @property
    def all(self) -> str:
        found = [f"e.search @@ {self._query(' && ')}"] if self._phrases else []
        return " AND ".join([*found, *(each.condition for each in self._contained)])

    @property
    def any(self) -> str:
        """Each alternative may be answered by an index of its own."""
        found = [f"e.search @@ {self._query(' || ')}"] if self._phrases else []
        return f"({' OR '.join([*found, *(f'({each.condition})' for each in self._contained)])})"

    @property
    def some(self) -> str:
        """Some, but not all. Of words that all go to the parser one question: the index answers it."""
        if self._contained:
            return f"{self.any} AND NOT ({self.all})"
        return f"e.search @@ ({self._query(' || ')} && !!{self._query(' && ')})"

    @property
    def rank_of_all(self) -> str:
        found = [f"ts_rank(e.search, {self._query(' && ')})"] if self._phrases else []
        return " + ".join([*found, *self._exact, *(_CONTAINED_RANK for _ in self._contained)])

    @property
    def rank_of_some(self) -> str:
        found = [f"ts_rank(e.search, {self._query(' || ')})"] if self._phrases else []
        there = (f"CASE WHEN {each.text} THEN {_CONTAINED_RANK} ELSE 0 END" for each in self._contained)
        return " + ".join([*found, *self._exact, *there])

    def _query(self, operator: str) -> str:
        return f"({operator.join(self._phrases)})"


def _or_longer(parameter: str, text: str) -> str:
    """The phrase of a word, or one whose last word begins like that of the phrase.

    Both are asked for, although the second includes the first: the planner knows how common whole words are, and of
    beginnings only where it knows many words.
    """
    phrase = _phrase(parameter)
    beginnings = [f"{phrase}::text"]
    if _COMPOUND.fullmatch(text):
        # The parser gives `foo-bar` and addresses whole and in parts: where the last part is a beginning, so is the
        # whole. But of `9f3c-11`, the beginning of such a word, it makes a word and a negative number.
        begun = f"regexp_replace({phrase}::text, '([^''< ][-/][^'' ]*'')(?=.)', '\\1:*', 'g')"
        unsigned = f"regexp_replace({begun}, '''-([^'']*'')$', '''\\1')"
        # Of `alice@example.com` it gives the whole alone.
        beginnings = [begun, unsigned, f"'''' || lower({parameter}::text) || ''''"]
    # Where the parser leaves nothing of a word, `:*` would stand alone and be an error.
    longer = [f"coalesce((nullif({each}, '') || ':*')::tsquery, {phrase})" for each in beginnings]
    return f"({' || '.join([phrase, *longer])})"


def _phrase(parameter: str) -> str:
    return f"phraseto_tsquery('simple', {parameter}::text)"


def _contained(word: Word, parameters: Parameters) -> _Contained:
    text, found = [], []
    for piece in word.pieces:
        # Only where case matters at all: to lower a long text is dear.
        lowered = "lower({})" if piece.lower() != piece.upper() else "{}"
        place = f"strpos({lowered.format('e.content')}, {lowered.format(f'{parameters.add(piece)}::text')})"
        # "<> 0" and not "> 0": of the one the planner expects next to all rows, of the other a third.
        text.append(f"{place} <> 0")
        if (query := grams(piece)) is not None:
            found.append(f"run_grams(e.content) @@ {parameters.add(query)}::text::tsquery")
    return _Contained(" AND ".join([_HAS_RUNS, *text, *found]), " AND ".join(text))

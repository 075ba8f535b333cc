"""The words of a search: what somebody typed, cut into what the store can look for.

In: text. Out: words, each either for PostgreSQL's parser or, where it has characters of a script that is written
without blanks, pieces of text that a message must contain. Pure: `search` makes the conditions of it.

Theory. Between the words of Chinese, Japanese, Thai and their like stand no blanks, so a parser that goes by blanks
takes a whole sentence for one word, and nobody searches for whole sentences. Such text is indexed by pairs: a *run* is
an unbroken row of characters of these scripts, and `run_grams` of the schema gives every two that follow each other in
one, and the last one alone. Text that contains a piece has all pairs of that piece's runs, so the index finds every
candidate; whether the pairs also stand in a row is then read in the text. One character is looked for as the beginning
of a pair. None of these scripts has upper and lower case.

Korean is written with blanks, but what follows a noun is written to it, so it counts too.
"""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from typing import Final

# Nobody types more; each word is another look into the index.
WORDS_MAX: Final = 32
TEXT_MAX: Final = 1024
GRAMS_MAX: Final = 32
"""Of one piece. The text itself decides; so many pairs leave hardly a row that has them all and not the text."""

# The characters of runs, in a form that Python and PostgreSQL read alike. The same text stands in the migration that
# makes the index, which is used only where a query says it letter by letter.
RUN: Final = (
    r"\u0E00-\u109F\u1100-\u11FF\u1780-\u17FF\u1950-\u19FF\u1A20-\u1AAF\u2E80-\u2FDF\u3005-\u3007\u3040-\u31FF"
    r"\u3400-\u4DBF\u4E00-\u9FFF\uA960-\uA97F\uA9E0-\uA9FF\uAA60-\uAADF\uAC00-\uD7FF\uF900-\uFAFF\uFF66-\uFFDC"
    r"\U0001AFF0-\U0001B16F\U00020000-\U0003FFFF"
)

_RUN: Final = re.compile(f"[{RUN}]+")
# The `key:value` words that NIP-50 names; a relay leaves out what it does not do. Any other is text: `error:timeout`.
_EXTENSION: Final = re.compile(r"(include|domain|language|sentiment|nsfw):[^/:].*")


@dataclass(frozen=True, slots=True)
class Word:
    """`pieces` is empty for a word that goes to the parser, else what a message must contain, upper or lower case."""

    text: str
    pieces: tuple[str, ...] = ()


def words(text: str) -> list[Word]:
    """The words of a search, each once, without NIP-50's own `key:value` and what has neither letter nor digit."""
    found = dict.fromkeys(text[:TEXT_MAX].replace("\0", " ").split())
    usable = [word for word in found if any(map(str.isalnum, word)) and not _EXTENSION.fullmatch(word)]
    return [Word(word, _pieces(word)) for word in usable[:WORDS_MAX]]


def _pieces(word: str) -> tuple[str, ...]:
    """The word without its punctuation: people quote, and put commas where others put none. None where only that is of
    a script without blanks, as in `฿100`."""
    spoken = "".join(char if unicodedata.category(char)[0] in "LMN" else " " for char in word)
    return tuple(spoken.split()) if _RUN.search(spoken) else ()


def grams(piece: str) -> str | None:
    """What the index of runs is asked for, as the text of a `tsquery`; None for a piece without any run."""
    wanted: dict[str, None] = {}
    for run in _RUN.findall(piece):
        if len(run) == 1:
            wanted[f"'{run}':*"] = None
        else:
            wanted |= dict.fromkeys(f"'{run[start : start + 2]}'" for start in range(len(run) - 1))
    return " & ".join(list(wanted)[:GRAMS_MAX]) or None

"""What a search is made of: words, pieces, pairs of characters."""

from __future__ import annotations

import re
from importlib.resources import files

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relay.query.words import GRAMS_MAX, RUN, TEXT_MAX, WORDS_MAX, Word, grams, words

RUN_CHARACTER = re.compile(f"[{RUN}]")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("日本語", [Word("日本語", ("日本語",))]),
        ("hello 日本", [Word("hello"), Word("日本", ("日本",))]),
        ("「東京、大阪」", [Word("「東京、大阪」", ("東京", "大阪"))]),
        ("iPhone日本", [Word("iPhone日本", ("iPhone日本",))]),
        ("foo-日本", [Word("foo-日本", ("foo", "日本"))]),
        ("สวัสดี", [Word("สวัสดี", ("สวัสดี",))]),
        ("ភាសា ພາສາ မြန်မာ བོད 한국어 ｶﾀ 𠮷野", [
            Word(word, (word,)) for word in ("ភាសា", "ພາສາ", "မြန်မာ", "བོད", "한국어", "ｶﾀ", "𠮷野")
        ]),
        ("größe привет ελλάδα שלום سلام हिन्दी", [
            Word(word) for word in ("größe", "привет", "ελλάδα", "שלום", "سلام", "हिन्दी")
        ]),
        ("。、！", []),
        ("฿100 ・x", [Word("฿100"), Word("・x")]),
    ],
)  # fmt: skip
def test_scripts_without_blanks_are_pieces(text: str, expected: list[Word]) -> None:
    assert words(text) == expected


@pytest.mark.parametrize(
    ("piece", "expected"),
    [
        ("日本語", "'日本' & '本語'"),
        ("日", "'日':*"),
        ("iPhone日本x東", "'日本' & '東':*"),
        ("日日日", "'日日'"),
        ("hello", None),
        ("", None),
    ],
)
def test_grams(piece: str, expected: str | None) -> None:
    assert grams(piece) == expected


def test_grams_are_bounded() -> None:
    query = grams("".join(chr(0x4E00 + number) for number in range(500)))
    assert query is not None
    assert query.count("&") == GRAMS_MAX - 1


@given(st.text(max_size=2 * TEXT_MAX))
def test_whatever_is_typed(text: str) -> None:
    found = words(text)
    assert len(found) <= WORDS_MAX
    for word in found:
        assert word.text
        assert "\0" not in word.text
        assert bool(word.pieces) <= bool(RUN_CHARACTER.search(word.text))
        for piece in word.pieces:
            query = grams(piece)
            assert (query is not None) == bool(RUN_CHARACTER.search(piece))
            # Nothing but characters of runs comes into a query between its quotes.
            assert query is None or re.fullmatch(rf"'[{RUN}]+'(:\*)?( & '[{RUN}]+'(:\*)?)*", query)


def test_the_migration_knows_the_same_characters() -> None:
    """The index is used only where a statement says its condition as the migration said it."""
    [script] = [
        each for each in files("relay.store").joinpath("migrations").iterdir() if each.name.endswith("_search.sql")
    ]
    text = script.read_text()
    assert f"'[^{RUN}]+'" in text
    assert f"'[{RUN}]'" in text

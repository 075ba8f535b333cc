"""Whole numbers as tags write them: digits, and nothing else that Python would also take for a number.

Pure: text goes in, a number comes out, or None. Nothing raises.
"""

from __future__ import annotations


def parse_decimal(text: str, maximum: int) -> int | None:
    """The number that the ASCII digits of `text` write, from 0 to `maximum`; None for a sign, a blank, another
    alphabet's digits, or more digits than `maximum` has, leading zeros included."""
    # The length first: of a text as long as a message, `int` would take its time.
    if len(text) > len(str(maximum)) or not (text.isascii() and text.isdigit()):
        return None
    number = int(text)
    return number if number <= maximum else None

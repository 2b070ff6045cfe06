"""Text of unknown origin on its way to a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """One line without control characters, which steer a terminal, invisible signs and what is no text."""
    return "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)

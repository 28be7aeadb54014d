"""The language of a question, as far as answers differ by it."""

from typing import Literal

import regex

Language = Literal["en", "zh"]

HAN = regex.compile(r"\p{Han}")
# Japanese and Korean are written with Han characters, too
_KANA_OR_HANGUL = regex.compile(r"[\p{Hiragana}\p{Katakana}\p{Hangul}]")


def language_of(question: str) -> Language:
    """ "zh" for Chinese; "en" for all other languages, which have no rules of their own."""
    return "zh" if HAN.search(question) and not _KANA_OR_HANGUL.search(question) else "en"

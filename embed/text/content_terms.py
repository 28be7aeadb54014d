"""The words of a text, normalised for comparing an answer with its sources."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from embed.text.analysis import Atom, bigrams, stems, tokens
from gpt_core.common.stop_words import FUNCTION_WORDS

_SYMBOLS = {
    "%": "percent",
    "‰": "permille",
    "$": "dollar",
    "€": "euro",
    "£": "pound",
    "¥": "yen",
    "°": "degree",
}
_SYMBOL = re.compile(f"([{''.join(_SYMBOLS)}])")
_PER_CENT = re.compile(r"\bper cent\b", re.IGNORECASE)
_NUMBER_WITH_UNIT = re.compile(r"(?<![\w.])(\d[\d.,]*)(?!st\b|nd\b|rd\b|th\b|s\b)(?=[^\W\d_])")


class Term(NamedTuple):
    """A word, number, unit's symbol, or bigram of a run of characters written without spaces.

    Attributes:
        key: what is compared: a Porter stem, a number without thousands separators, or a bigram.
        word: the word as it stands in the text (normalised, contractions written out).
        is_number: whether it is written in digits.
        is_name: whether it is capitalised and not the first word of the text.
        is_function: whether it is a function word, which says little about the topic of a text.
    """

    key: str
    word: str
    is_number: bool = False
    is_name: bool = False
    is_function: bool = False


def content_terms(texts: Sequence[str]) -> list[list[Term]]:
    """The terms of each text in order, with repetitions; function words are marked.

    Words are those of `embed.text.analysis`, reduced to their Porter stems. A number with a decimal point and a
    version are one term; units' symbols are terms; runs are split into overlapping bigrams.
    """
    raw = [_raw_terms(text) for text in texts]
    stem = stems({t.key for terms in raw for t in terms if not t.is_number})
    return [[t._replace(key=stem.get(t.key, t.key)) for t in terms] for terms in raw]


def _raw_terms(text: str) -> list[Term]:
    text = _NUMBER_WITH_UNIT.sub(r"\1 ", _PER_CENT.sub("percent", text))  # 5km → 5 km
    terms: list[Term] = []
    for part in _SYMBOL.split(text):
        if part in _SYMBOLS:
            terms.append(Term(_SYMBOLS[part], part))
            continue
        for joined in tokens(part):
            if all(atom.is_number for atom in joined):
                number = ".".join(atom.term for atom in joined)
                terms.append(Term(number, number, is_number=True))
            else:
                for atom in joined:
                    terms += _terms(atom, is_first=not terms)
    return terms


def _terms(atom: Atom, *, is_first: bool) -> list[Term]:
    if atom.is_run:
        return [Term(pair, pair) for pair in bigrams(atom.term) or [atom.term]]
    if atom.is_number:
        return [Term(atom.term, atom.raw, is_number=True)]
    is_name = not is_first and not atom.raw.islower()
    return [Term(atom.term, atom.raw, is_name=is_name, is_function=atom.term in FUNCTION_WORDS)]

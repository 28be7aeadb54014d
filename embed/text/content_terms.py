"""The words of a text, normalised for comparing an answer with its sources."""

import re
import sqlite3
import unicodedata
from collections.abc import Sequence
from contextlib import closing
from typing import NamedTuple

from embed.text.terms import CJK, FTS5_TOKENIZER

_TERM = re.compile(
    rf"(?P<run>[{CJK}]+)|(?P<number>\d+(?:[.,]\d+)*)(?:st|nd|rd|th|s)?|(?P<word>[^\W\d_{CJK}][^\W_{CJK}]*)"
    r"|(?P<symbol>[%‰$€£¥°])"
)
_SYMBOLS = {
    "%": "percent",
    "‰": "permille",
    "$": "dollar",
    "€": "euro",
    "£": "pound",
    "¥": "yen",
    "°": "degree",
}
# didn't → did not, can't and cannot → can not, won't → will not
_CONTRACTIONS = (
    (re.compile(r"\bwon['’]t\b", re.IGNORECASE), "will not"),
    (re.compile(r"\bshan['’]t\b", re.IGNORECASE), "shall not"),
    (re.compile(r"\bca(?:n['’]t|nnot)\b", re.IGNORECASE), "can not"),
    (re.compile(r"(?<=[a-z])n['’]t\b", re.IGNORECASE), " not"),
    (re.compile(r"\bper cent\b", re.IGNORECASE), "percent"),
)
_FUNCTION_WORDS = (
    "a about above after again against all also am an and any are as at be because been before being below between "
    "both but by can could d did do does doing down during each either etc few for from further had has have having "
    "he her here hers him his how however i if in into is it its just ll m me more most my neither no nor not now of "
    "off on once only or other our out over own re s same she should since so some such t than that the their them "
    "then there these they this those through thus to too under until up upon ve very was we were what when where "
    "whether which while who whom whose why will with within without would you your "
    "answer answers passage passages question questions text"
)
_STOP = frozenset(_FUNCTION_WORDS.split())


class Term(NamedTuple):
    """A word, number, unit's symbol, or bigram of Chinese characters.

    Attributes:
        key: what is compared: a Porter stem, a number without thousands separators, or a bigram.
        word: the word as it stands in the text (after NFKC, contractions written out).
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

    Words are reduced to their Porter stems, contractions of "not" are written out, thousands separators are removed
    from numbers, and runs of Chinese characters are split into overlapping bigrams.
    """
    raw = [_raw_terms(unicodedata.normalize("NFKC", text)) for text in texts]
    stems = _porter({t.key for terms in raw for t in terms if not t.is_number})
    return [[t._replace(key=stems.get(t.key, t.key)) for t in terms] for terms in raw]


def _raw_terms(text: str) -> list[Term]:
    for pattern, whole in _CONTRACTIONS:
        text = pattern.sub(whole, text)
    terms: list[Term] = []
    for place, match in enumerate(_TERM.finditer(text)):
        run = match[match.lastgroup or 0]
        if match.lastgroup == "run":
            terms += [Term(pair, pair) for i in range(max(1, len(run) - 1)) if (pair := run[i : i + 2])]
        elif match.lastgroup == "number":
            terms.append(Term(run.replace(",", ""), run, is_number=True))
        elif match.lastgroup == "symbol":
            terms.append(Term(_SYMBOLS[run], run))
        else:
            word = run.lower()
            is_name = place > 0 and not run.islower()
            terms.append(Term(word, run, is_name=is_name, is_function=word in _STOP))
    return terms


def _porter(words: set[str]) -> dict[str, str]:
    """Word → stem, by the stemmer of SQLite's FTS5, which the index's lexical retriever uses, too."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"CREATE VIRTUAL TABLE words USING fts5(word, tokenize='{FTS5_TOKENIZER}')")
        db.execute("CREATE VIRTUAL TABLE stems USING fts5vocab(words, instance)")
        ordered = sorted(words)
        db.executemany("INSERT INTO words(rowid, word) VALUES (?, ?)", enumerate(ordered))
        return {ordered[row]: stem for row, stem in db.execute("SELECT doc, term FROM stems")}

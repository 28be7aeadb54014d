"""Text analysis: the one way from a text to its terms, for the index, queries, BM25, citations and near-duplicates.

A text is normalised (`normalise`), cut into words and runs (`tokens`), and each word is case-folded. The forms that
users take for one word become one term: full-width and ligatures (NFKC), accents and vowel points, soft hyphens and
zero-width characters, Straße and STRASSE, 1,000 and 1000.
"""

import sqlite3
import unicodedata
from collections.abc import Iterable, Iterator
from contextlib import closing
from functools import lru_cache
from typing import NamedTuple

import regex

from gpt_core.common.stop_words import STOP_WORDS

# FTS5's tokenizer splits at spaces only, because words are found here; it applies Porter's stemmer.
FTS5_TOKENIZER = "porter unicode61 remove_diacritics 0 categories ''L* M* N* P* S* C*''"

# Scripts written without spaces between words, and hangul, whose words carry particles.
_RUN = (
    r"[[\p{Han}\p{Hiragana}\p{Katakana}ー\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]--[\p{Nd}\p{P}\p{S}]]"
)
_WORD = rf"[[\p{{L}}\p{{N}}\p{{M}}]--{_RUN}]"
_TOKEN = regex.compile(
    rf"""(?P<run>{_RUN}+)
    | (?P<symbol>(?<![\p{{L}}\p{{N}}])\.[A-Za-z]{_WORD}*(?![.\w]) | [A-Za-z]{_WORD}*(?:\+\+ | \#(?![\w\#])))
    | (?P<thousands>\d{{1,3}}(?:,\d{{3}})+(?![\d,]))
    | (?P<number>\d+(?:st|nd|rd|th|s)?(?!{_WORD}))
    | (?P<word>{_WORD}+(?:'(?i:s|t|d|ll|m|re|ve)(?!{_WORD}))?)""",
    regex.VERBOSE | regex.V1,
)
# Marks that make one phrase of two words. Words joined by hyphens are not asked as phrases, because that lowers nDCG@10
# (docs/log.md, 2026-11-29, "One text analysis").
_JOINER = regex.compile(rf"[._](?={_WORD})", regex.V1)
_JOINERS = frozenset("._")
_CAMEL = regex.compile(r"\p{Lu}+(?![\p{Ll}])|\p{Lu}?\p{Ll}+|\p{N}+")
_HAS_CAMEL = regex.compile(r"\p{Ll}\p{Lu}|\p{Lu}{2}\p{Ll}{2}")
_CHARACTER_OR_WORD = regex.compile(rf"{_RUN}|{_WORD}+", regex.V1)
_NEGATED = {"ca": "can", "wo": "will", "sha": "shall"}  # can't, won't and shan't without n't
_KANA_VOICING = "\u3099\u309a"  # が is a letter of its own, not か with an accent
_MAX_JOINED = 8  # words of one compound


class Atom(NamedTuple):
    """A word, a number or a run of characters written without spaces.

    Attributes:
        term: the case-folded word; of a run, all its characters.
        raw: the word as written, after `normalise`.
        parts: case-folded parts under which the word is found, too: camel and case of CamelCase, c of C++.
        is_number, is_run: which kind; neither for a word.
    """

    term: str
    raw: str
    parts: tuple[str, ...] = ()
    is_number: bool = False
    is_run: bool = False


class IndexTerms(NamedTuple):
    """The terms of an indexed text: its words in order, and its distinct stop words, sorted. Neither is stemmed."""

    words: list[str]
    stop_words: list[str]


class Phrase(NamedTuple):
    """Words that follow each other in an indexed text; `is_prefix`: a single character that begins a term."""

    words: tuple[str, ...]
    is_prefix: bool = False


class Query(NamedTuple):
    """What to search for: texts with any of these phrases; `only_stop_words`: the query has no other words."""

    phrases: list[Phrase]
    only_stop_words: bool


def normalise(text: str) -> str:
    """NFKC, without accents and points (marks with a combining class) and without format characters.

    Vowel signs of Indic and Southeast Asian scripts, which have no combining class, are letters here.
    """
    if text.isascii():
        return text
    text = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).replace("’", "'"))
    dropped = {
        ord(c): None
        for c in set(text)
        if (unicodedata.combining(c) and c not in _KANA_VOICING) or unicodedata.category(c) == "Cf"
    }
    return unicodedata.normalize("NFC", text.translate(dropped))


def tokens(text: str) -> Iterator[list[Atom]]:
    """The words of a text in order; words joined by a mark (3.8, sys.path, state-of-the-art) are in one list."""
    text = normalise(text)
    joined: list[Atom] = []
    start = -1  # of a word that is joined with the last one
    for match in _TOKEN.finditer(text):
        if joined and (match.start() != start or len(joined) == _MAX_JOINED):
            yield joined
            joined = []
        first, *negation = _atoms(match.group(), str(match.lastgroup))
        joined.append(first)
        if negation:
            yield joined
            joined = negation
        end = match.end()
        joiner = _JOINER.match(text, end) if text[end : end + 1] in _JOINERS else None
        start = joiner.end() if joiner else -1
    if joined:
        yield joined


@lru_cache(maxsize=65536)
def _atoms(raw: str, kind: str) -> tuple[Atom, ...]:
    """The atom of a match of `_TOKEN`, or two for a negated verb: didn't → did, not; cannot → can, not."""
    if kind == "run":
        return (Atom(raw, raw, is_run=True),)
    if kind in ("number", "thousands"):
        return (Atom(raw.replace(",", "").rstrip("stndrh"), raw, is_number=True),)
    if kind == "symbol":
        return (Atom(raw.casefold(), raw, (raw.casefold().strip(".+#"),)),)
    word, _, clitic = raw.partition("'")
    if word.casefold() == "cannot":
        return Atom("can", word[:3]), Atom("not", word[3:])
    if clitic in ("t", "T") and len(word) > 1 and word[-1] in "nN":
        verb = word[:-1].casefold()
        return Atom(_NEGATED.get(verb, verb), word[:-1]), Atom("not", "not")
    parts = _CAMEL.findall(word) if _HAS_CAMEL.search(word) else []
    parts = tuple(part.casefold() for part in parts if len(part) > 1)
    return (Atom(word.casefold(), word, parts),)


def index_terms(text: str) -> IndexTerms:
    """The terms under which a text is found.

    A run becomes its overlapping pairs of characters and its last character alone (as in Lucene's CJKBigramFilter).
    Every character thus begins a term, so a prefix query finds single characters. CamelCase and C++ are followed by
    their parts.
    """
    found: list[str] = []
    for joined in tokens(text):
        for atom in joined:
            found += [*bigrams(atom.term), atom.term[-1]] if atom.is_run else [atom.term, *atom.parts]
    words = [term for term in found if term not in STOP_WORDS]
    return IndexTerms(words, sorted(STOP_WORDS.intersection(found)))


def query_terms(text: str) -> Query:
    """What to search for: the words of a text without stop words, if it has others, and its joined words as phrases."""
    phrases: list[Phrase] = []
    stop_words: list[Phrase] = []
    for joined in tokens(text):
        is_number = all(atom.is_number for atom in joined)
        if len(joined) > 1 and (is_number or max(len(atom.term) for atom in joined) > 1):  # not U.S.
            together = (term for atom in joined for term in (atom.term, *atom.parts))
            phrases.append(Phrase(tuple(term for term in together if term not in STOP_WORDS)))
            if is_number:  # 3.8 is not any text with a 3
                continue
        for atom in joined:
            if atom.is_run:
                pairs = [Phrase((pair,)) for pair in bigrams(atom.term)]
                phrases += pairs or [Phrase((atom.term,), is_prefix=True)]
            elif atom.term in STOP_WORDS:
                stop_words.append(Phrase((atom.term,)))
            else:
                phrases.append(Phrase((atom.term,)))
                if len(atom.parts) > 1 and min(map(len, atom.parts)) > 2:  # CamelCase, not mRNA
                    phrases.append(Phrase(atom.parts))
    phrases = [phrase for phrase in phrases if phrase.words]
    return Query(phrases or stop_words, not phrases)


def bigrams(run: str) -> list[str]:
    """The overlapping character pairs of a run; empty for a single character."""
    return [run[i : i + 2] for i in range(len(run) - 1)]


def words(text: str) -> list[str]:
    """All words, case-folded, without punctuation; each character of a run is a word."""
    return _CHARACTER_OR_WORD.findall(normalise(text).casefold())


def stems(terms: Iterable[str]) -> dict[str, str]:
    """Term → stem for distinct terms, by the stemmer of SQLite's FTS5, which the index uses."""
    with closing(sqlite3.connect(":memory:")) as db:
        db.execute(f"CREATE VIRTUAL TABLE words USING fts5(word, tokenize = '{FTS5_TOKENIZER}')")
        db.execute("CREATE VIRTUAL TABLE stems USING fts5vocab(words, instance)")
        ordered = sorted(terms)
        db.executemany("INSERT INTO words(rowid, word) VALUES (?, ?)", enumerate(ordered))
        return {ordered[row]: stem for row, stem in db.execute("SELECT doc, term FROM stems")}

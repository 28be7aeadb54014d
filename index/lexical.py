"""The lexical leg: text as SQLite's FTS5 is to see it, and queries that it cannot misread.

FTS5's own tokenizer takes a run of Chinese characters for one word. Here such runs become overlapping bigrams, on the
indexed and on the asked side alike (as Lucene's CJKBigramFilter); English stop words go; FTS5 then folds case and
diacritics and applies Porter's stemmer (`TOKENIZER`).
"""

import re
import unicodedata

TOKENIZER = "porter unicode61 remove_diacritics 2"

# Lucene's list, and what makes a question of a sentence: in prose these words are rare and so would weigh much.
LUCENE_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
QUESTIONS = (
    "what which who whom when whose where why how do does did can could should would i my me you your we our"
)
STOP_WORDS = frozenset(f"{LUCENE_ENGLISH} {QUESTIONS}".split())
# Scripts written without spaces, and Korean, whose words carry particles: Han, kana, hangul
CJK = (
    "\u3005-\u3007\u3021-\u3029\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
TERM = re.compile(f"([{CJK}]+)|[^\\W_{CJK}]+")
# FTS5 takes time that grows with the terms of a query; a pasted book needs no more of them to be found.
MAX_TERMS = 1024


def index_text(text: str) -> str:
    """`text` as terms with spaces between, for the FTS5 table.

    A run of Chinese characters is its bigrams and then its last character alone: every character thus begins a term,
    and `match_expression` finds a single one by its prefix.
    """
    terms: list[str] = []
    for run, word in _terms(text):
        terms += [*_bigrams(run), run[-1]] if run else [word]
    return " ".join(terms)


def match_expression(query: str) -> str | None:
    """An FTS5 expression that asks for any term of `query`, or None if it has no terms. Never a syntax error."""
    terms: list[str] = []
    for run, word in _terms(query):
        if len(run) == 1:
            terms.append(f'"{run}" *')
        else:
            terms += [f'"{term}"' for term in (_bigrams(run) if run else [word])]
        if len(terms) >= MAX_TERMS:
            break
    return " OR ".join(terms[:MAX_TERMS]) or None


def _terms(text: str) -> list[tuple[str, str]]:
    """Each term as (run of Chinese characters, "") or ("", word in lower case), stop words left out."""
    found = (
        (match[1] or "", match[0].lower()) for match in TERM.finditer(unicodedata.normalize("NFKC", text))
    )
    return [(run, "" if run else word) for run, word in found if run or word not in STOP_WORDS]


def _bigrams(run: str) -> list[str]:
    return [run[i : i + 2] for i in range(len(run) - 1)]

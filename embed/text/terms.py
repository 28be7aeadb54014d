"""Terms of a text for lexical search: words, and character bigrams in scripts written without spaces."""

import re
import unicodedata

# Lucene's stop words, and question words, which are rare in prose and would get a high IDF weight.
LUCENE_ENGLISH = (
    "a an and are as at be but by for if in into is it no not of on or such that the their then there these they this "
    "to was will with"
)
QUESTION_WORDS = (
    "what which who whom when whose where why how do does did can could should would i my me you your we our"
)
STOP_WORDS = frozenset(f"{LUCENE_ENGLISH} {QUESTION_WORDS}".split())
# Han, kana (written without spaces) and hangul (words carry particles)
CJK = (
    "\u3005-\u3007\u3021-\u3029\u3041-\u3096\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u31f0-\u31ff"
    "\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7a3\uf900-\ufaff\U00020000-\U0003ffff"
)
# FTS5's tokenizer, for the index and for citations: folds case and diacritics, then applies Porter's stemmer.
FTS5_TOKENIZER = "porter unicode61 remove_diacritics 2"
TERM = re.compile(f"([{CJK}]+)|[^\\W_{CJK}]+")
CHARACTER_OR_WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")


def index_text(text: str) -> str:
    """The terms of `text` joined by spaces, for a lexical index.

    A run of CJK characters becomes its bigrams and its last character alone (as in Lucene's CJKBigramFilter). Every
    character thus begins a term, so a prefix query finds single characters. English stop words are removed.
    """
    found: list[str] = []
    for run, word in terms(text):
        found += [*bigrams(run), run[-1]] if run else [word]
    return " ".join(found)


def terms(text: str) -> list[tuple[str, str]]:
    """Each term as (run of CJK characters, "") or ("", lower-case word), without stop words."""
    found = (
        (match[1] or "", match[0].lower()) for match in TERM.finditer(unicodedata.normalize("NFKC", text))
    )
    return [(run, "" if run else word) for run, word in found if run or word not in STOP_WORDS]


def bigrams(run: str) -> list[str]:
    """The overlapping character pairs of a run; empty for a single character."""
    return [run[i : i + 2] for i in range(len(run) - 1)]


def words(text: str) -> list[str]:
    """All words in lower case, without punctuation; each CJK character is a word."""
    return CHARACTER_OR_WORD.findall(unicodedata.normalize("NFKC", text).lower())

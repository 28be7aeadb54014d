"""Words of a text, and what stands for words in scripts that are written without spaces."""

import re
import unicodedata

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
CHARACTER_OR_WORD = re.compile(f"[{CJK}]|[^\\W_{CJK}]+")


def index_text(text: str) -> str:
    """`text` as terms with spaces between, for a lexical index.

    A run of Chinese characters is its bigrams and then its last character alone (Lucene's CJKBigramFilter): every
    character thus begins a term, and a single one is found by its prefix. English stop words go.
    """
    found: list[str] = []
    for run, word in terms(text):
        found += [*bigrams(run), run[-1]] if run else [word]
    return " ".join(found)


def terms(text: str) -> list[tuple[str, str]]:
    """Each term as (run of Chinese characters, "") or ("", word in lower case), stop words left out."""
    found = (
        (match[1] or "", match[0].lower()) for match in TERM.finditer(unicodedata.normalize("NFKC", text))
    )
    return [(run, "" if run else word) for run, word in found if run or word not in STOP_WORDS]


def bigrams(run: str) -> list[str]:
    """The overlapping pairs of characters in a run; none in a single one."""
    return [run[i : i + 2] for i in range(len(run) - 1)]


def words(text: str) -> list[str]:
    """All words in lower case, without punctuation; a Chinese character is a word."""
    return CHARACTER_OR_WORD.findall(unicodedata.normalize("NFKC", text).lower())

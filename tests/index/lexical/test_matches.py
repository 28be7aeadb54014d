import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.text.analysis import FTS5_TOKENIZER, index_terms, query_terms
from index.lexical.matches import MAX_TERMS, match_expression


def found(query: str, *texts: str) -> list[int]:
    """Indices of the texts that a query matches, best first."""
    db = sqlite3.connect(":memory:")
    try:
        for table in ("words", "stop_words"):
            db.execute(f"CREATE VIRTUAL TABLE {table} USING fts5 (terms, tokenize = '{FTS5_TOKENIZER}')")
            for i, text in enumerate(texts):
                terms = " ".join(getattr(index_terms(text), table))
                db.execute(f"INSERT INTO {table} (rowid, terms) VALUES (?, ?)", (i, terms))
        parsed = query_terms(query)
        if not parsed.phrases:
            return []
        expression = match_expression(parsed.phrases)
        table = "stop_words" if parsed.only_stop_words else "words"
        rows = db.execute(
            f"SELECT rowid FROM {table} WHERE {table} MATCH ? ORDER BY bm25({table})", (expression,)
        )
        return [row[0] for row in rows]
    finally:
        db.close()


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("大学", "北京大学的学生"),
        ("学", "北京大学"),  # the last character of a run of CJK characters
        ("北", "北京大学"),
        ("ひらがな", "これはひらがなです"),
        ("한국", "한국어를"),
        ("𠀀𠀁", "x𠀀𠀁y"),
        ("relational operators", "the relation operates"),  # stemmed
        ("CAFÉ", "un cafe"),
        ("ｆｕｌｌ　ｗｉｄｔｈ", "full width"),
        ("Python语言", "python 的语言"),
        ("__init__", "def __init__(self)"),
        ("PEP 8", "pep 8"),
        ("แมว", "แมวของฉันนอนหลับ"),
        ("كتب", "كَتَبَ الطَّالِبُ"),
        ("Михаил Булгаков", "Михаи́л Булга́ков"),
        ("Gesamtkonzept", "Ge\u00adsamt\u00adkonzept"),
        ("strasse", "Straße"),
        ("to be or not to be", "to be, or not to be"),
        ("WHO", "the report of the WHO"),
        ("case", "CamelCase"),
        ("camelcase", "CamelCase"),
        ("CamelCase", "camel case"),
        ("SnakeCase", "snake_case"),
        ("C++", "c++11"),
        ("net", "ASP.NET"),
        ("node.js", "Node.js"),
    ],
)
def test_a_query_finds(query, text):
    assert found(query, text, "unrelated") == [0]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("学大", "北京大学"),
        ("京学", "北京大学"),
        ("हिन्दी", "हम दिल्ली में हैं"),
        ("C++", "the C API"),
        ("3.8", "8 before 3"),
        ("the way", "the same stop word"),
        ("🙂 !?", "🙂 !?"),
    ],
)
def test_a_query_does_not_find(query, text):
    assert found(query, text) == []


def test_a_version_is_found_before_its_numbers():
    texts = ["Python 2.8 un-release: 3 reasons, 8 votes", "Python 3.8 release schedule", "Python 3"]
    assert found("Python 3.8 release", *texts)[0] == 1


HOSTILE = [
    '"',
    "'",
    "*",
    "(",
    ")",
    "NEAR(a b)",
    "a AND",
    "NOT",
    "OR",
    "col:x",
    "^",
    "-",
    "+",
    "{",
    "}",
    "\0",
    ";",
    "知",
]


@settings(max_examples=300, deadline=None)
@given(st.text() | st.lists(st.sampled_from(HOSTILE) | st.text(max_size=3)).map(" ".join))
def test_no_query_is_a_syntax_error_and_a_text_finds_itself(text):
    terms = index_terms(text)
    result = found(text, text)
    if "".join(terms.words + terms.stop_words).isascii() and any(terms):
        assert result == [0]


def test_a_very_long_query_is_limited_to_max_terms():
    expression = match_expression(query_terms(" ".join(f"word{i}" for i in range(50_000))).phrases)
    assert expression.count(" OR ") == MAX_TERMS - 1
    assert found(" ".join(f"word{i}" for i in range(50_000)), "word3") == [0]

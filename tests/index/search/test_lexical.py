import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from embed.text.terms import FTS5_TOKENIZER, index_text
from index.search.lexical import MAX_TERMS, match_expression


def found(query: str, *texts: str) -> list[int]:
    """Indices of the texts that a query matches, best first."""
    table = sqlite3.connect(":memory:")
    try:
        table.execute(f"CREATE VIRTUAL TABLE t USING fts5 (terms, tokenize = '{FTS5_TOKENIZER}')")
        for i, text in enumerate(texts):
            table.execute("INSERT INTO t (rowid, terms) VALUES (?, ?)", (i, index_text(text)))
        expression = match_expression(query)
        if expression is None:
            return []
        rows = table.execute("SELECT rowid FROM t WHERE t MATCH ? ORDER BY bm25(t)", (expression,))
        return [row[0] for row in rows]
    finally:
        table.close()


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
    ],
)
def test_a_query_finds(query, text):
    assert found(query, text, "unrelated") == [0]


@pytest.mark.parametrize(
    ("query", "text"),
    [
        ("学大", "北京大学"),
        ("京学", "北京大学"),
        ("the of and", "the of and"),  # stop words
        ("🙂 !?", "🙂 !?"),
    ],
)
def test_a_query_does_not_find(query, text):
    assert found(query, text) == []


def test_indexed_terms_of_mixed_text():
    assert index_text("The PEP 8 规范说明, 一 (and) snake_case") == "pep 8 规范 范说 说明 明 一 snake case"


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
    assume_words = index_text(text).strip()
    result = found(text, text)
    if assume_words.isascii() and assume_words:
        assert result == [0]


def test_a_very_long_query_is_limited_to_max_terms():
    expression = match_expression(" ".join(f"word{i}" for i in range(50_000)))
    assert expression is not None
    assert expression.count(" OR ") == MAX_TERMS - 1
    assert found(" ".join(f"word{i}" for i in range(50_000)), "word3") == [0]

"""The lexical leg: text as SQLite's FTS5 is to see it, and queries that it cannot misread.

FTS5's own tokenizer takes a run of Chinese characters for one word. Here such runs become overlapping bigrams, on the
indexed and on the asked side alike (as Lucene's CJKBigramFilter); English stop words go; FTS5 then folds case and
diacritics and applies Porter's stemmer (`TOKENIZER`).
"""

from embed.text.terms import bigrams, terms

# FTS5 takes time that grows with the terms of a query; a pasted book needs no more of them to be found.
MAX_TERMS = 1024


def match_expression(query: str) -> str | None:
    """An FTS5 expression that asks for any term of `query`, or None if it has no terms. Never a syntax error."""
    found: list[str] = []
    for run, word in terms(query):
        if len(run) == 1:
            found.append(f'"{run}" *')
        else:
            found += [f'"{term}"' for term in (bigrams(run) if run else [word])]
        if len(found) >= MAX_TERMS:
            break
    return " OR ".join(found[:MAX_TERMS]) or None

"""Query expressions for the lexical retriever, SQLite's FTS5, with all terms quoted.

FTS5's tokenizer treats a run of Chinese characters as one word. Such runs are therefore split into overlapping bigrams,
in indexed texts and in queries (like Lucene's CJKBigramFilter), and English stop words are removed. FTS5 then folds
case and diacritics and applies Porter's stemmer (`TOKENIZER`).
"""

from embed.text.terms import bigrams, terms

# FTS5's search time grows with the number of terms; more terms do not help to find a long pasted text.
MAX_TERMS = 1024


def match_expression(query: str) -> str | None:
    """A valid FTS5 expression that matches any term of `query`, or None if the query has no terms."""
    found: list[str] = []
    for run, word in terms(query):
        if len(run) == 1:
            found.append(f'"{run}" *')
        else:
            found += [f'"{term}"' for term in (bigrams(run) if run else [word])]
        if len(found) >= MAX_TERMS:
            break
    return " OR ".join(found[:MAX_TERMS]) or None

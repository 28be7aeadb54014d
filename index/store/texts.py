"""The texts of documents and passages, which the store has once: in pieces, of which passages are made."""

import sqlite3
from collections.abc import Iterator, Sequence

from index.reading.passages import Passage

# The text of the passage `p`, and what follows it in the pieces that it reaches into. SQLite would cut it to its length
# at a NUL, so Python does.
TEXT = """coalesce((SELECT group_concat(text, '') FROM (
    SELECT text FROM passages WHERE document = p.document AND start >= p.start AND start < p.stop ORDER BY start
)), '')"""
DOCUMENT_TEXT = """d.lead || coalesce((SELECT group_concat(text, '') FROM (
    SELECT text FROM passages WHERE document = d.number ORDER BY start
)), '') || d.rest"""


def pieces(text: str, passages: Sequence[Passage]) -> tuple[str, list[str], str]:
    """A document's text in pieces: what precedes the passages, one piece for each of them, and what follows them."""
    if not passages:
        return text, [], ""
    ends = [*(passage.start for passage in passages[1:]), passages[-1].end]
    middle = [text[passage.start : end] for passage, end in zip(passages, ends, strict=True)]
    return text[: passages[0].start], middle, text[passages[-1].end :]


def passage_texts(
    tx: sqlite3.Connection, where: str = "", values: Sequence[int] = ()
) -> Iterator[tuple[int, str, str]]:
    """Passages `p` of documents `d`, by id: each one's id, its document's title, and its text.

    Args:
        tx: a transaction; it must not change these passages before the last one was read.
        where: an SQL condition; "" for all passages.
        values: the values of its parameters.
    """
    query = f"""SELECT p.number, d.title, {TEXT}, p.stop - p.start FROM passages AS p
        JOIN documents AS d ON d.number = p.document {f"WHERE {where}" if where else ""} ORDER BY p.number"""
    for number, title, text, length in tx.execute(query, tuple(values)):
        yield number, title, text[:length]

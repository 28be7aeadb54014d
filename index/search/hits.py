"""Search results."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from index.reading.passages import passage_id


class Ranked(NamedTuple):
    """A ranked passage: its id in the store and its scores; None for a retriever that was not used."""

    number: int
    score: float
    dense: float | None
    lexical: float | None


@dataclass(frozen=True)
class Hit:
    """A passage that a search found.

    Attributes:
        passage_id, text: the passage.
        doc_id, title: its document.
        start, end: offsets in Unicode code points into the document's text.
        score: the score that hits are sorted by; comparable within one search only.
        dense: cosine of query and passage; None if dense search was not used.
        lexical: BM25, 0 if no term of the query occurs; None if lexical search was not used.
        metadata: the document's metadata.
    """

    passage_id: str
    doc_id: str
    title: str
    text: str
    start: int
    end: int
    score: float
    dense: float | None
    lexical: float | None
    metadata: dict[str, Any]

    @classmethod
    def of(cls, ranked: Ranked, row: dict[str, Any]) -> "Hit":
        """The hit for a ranked passage and its row in the store."""
        name = passage_id(row["doc_id"], row["start"], row["end"])
        row = {**row, "metadata": json.loads(row["metadata"])}
        return cls(passage_id=name, score=ranked.score, dense=ranked.dense, lexical=ranked.lexical, **row)

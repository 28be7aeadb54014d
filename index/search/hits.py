"""What a search returns."""

import json
from dataclasses import dataclass
from typing import Any, NamedTuple

from index.reading.passages import passage_id


class Ranked(NamedTuple):
    """A passage's place in a result: its number and scores; None for a leg that was not asked."""

    number: int
    score: float
    dense: float | None
    lexical: float | None


@dataclass(frozen=True)
class Hit:
    """A passage that a search found.

    Attributes:
        passage_id, doc_id, title, text: which passage, of which document.
        start, end: offsets in Unicode code points into the document's text.
        score: what the result is ordered by; comparable within one result only.
        dense: cosine of query and passage; None if the dense leg was not asked.
        lexical: BM25, 0 where no term of the query occurs; None if the lexical leg was not asked.
        metadata: the document's.
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
        """The hit for a passage's place in a result and its row in the store."""
        name = passage_id(row["doc_id"], row["start"], row["end"])
        row = {**row, "metadata": json.loads(row["metadata"])}
        return cls(passage_id=name, score=ranked.score, dense=ranked.dense, lexical=ranked.lexical, **row)

"""Candidates: the sentences, list items, table rows and lines of code in the passages that an answer can quote."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import regex

from embed.text.sentences import split_sentences
from index import Hit
from index.reading.structure import Kind, blocks

# Characters before and after a passage that are read for its headings and its neighbours, in documents that are longer.
BEFORE, AFTER = 1 << 17, 1 << 12
# Questions that ask for a line of code or a row of a table; otherwise these are no answers.
ASKS_FOR_CODE = regex.compile(
    r"\b(?:code|commands?|snippets?|syntax|examples?|options?|flags?|parameters?|tables?|rows?|columns?)\b|--\w|[\w.]+\(\)|"
    r"代码|命令|示例|例子|语法|选项|参数|表格|表中|列表",
    regex.IGNORECASE,
)


class Piece(NamedTuple):
    """A sentence, list item, table row or line of code, text[start:end], and the headings of its section."""

    kind: Kind
    start: int
    end: int
    headings: tuple[str, ...]


@dataclass(frozen=True)
class Candidate:
    """A piece of a document that an answer can quote.

    Attributes:
        hit: the best passage that has at least half of it.
        rank: the passage's place among the hits, from 0.
        kind: what the piece is.
        start, end: offsets in code points into the document's text.
        text: the piece.
        headings: the headings above it, the outermost first.
        before, after: the texts beside it in its section, or "".
        is_first: whether it is the first piece of its document.
    """

    hit: Hit
    rank: int
    kind: Kind
    start: int
    end: int
    text: str
    headings: tuple[str, ...]
    before: str
    after: str
    is_first: bool


def find_candidates(question: str, hits: Sequence[Hit], document: Callable[[str], str]) -> list[Candidate]:
    """The candidates in the passages, each once, in the order of the passages.

    Pieces of a document, not of a passage: a passage may begin or end inside a sentence. Rows of tables and lines of
    code are candidates only if the question asks for them, or if there is nothing else.

    Args:
        question: the question.
        hits: the passages, best first.
        document: gives the text of the document with an id.
    """
    found: list[Candidate] = []
    seen: set[tuple[str, int]] = set()
    for rank, hit in enumerate(hits):
        text = document(hit.doc_id)
        offset = 0 if len(text) <= BEFORE else max(0, text.rfind("\n", 0, max(0, hit.start - BEFORE)))
        part = text[offset : len(text) if len(text) <= BEFORE else hit.end + AFTER]
        pieces = _pieces(part)
        for i, piece in enumerate(pieces):
            start, end = piece.start + offset, piece.end + offset
            inside = min(end, hit.end) - max(start, hit.start)
            if 2 * inside < end - start or (hit.doc_id, start) in seen:
                continue
            seen.add((hit.doc_id, start))
            before, after = (_text(part, pieces, i + step, piece.headings) for step in (-1, 1))
            is_first = i == offset == 0
            found.append(
                Candidate(
                    *(hit, rank, piece.kind, start, end, text[start:end]),
                    *(piece.headings, before, after, is_first),
                )
            )
    if ASKS_FOR_CODE.search(question):
        return found
    return [c for c in found if c.kind in ("prose", "item")] or found


def _text(text: str, pieces: Sequence[Piece], place: int, headings: tuple[str, ...]) -> str:
    """The text of the piece at a place, or "" if none is there or it is under other headings."""
    if not 0 <= place < len(pieces) or pieces[place].headings != headings:
        return ""
    return text[pieces[place].start : pieces[place].end]


@lru_cache(maxsize=64)
def _pieces(text: str) -> list[Piece]:
    """The pieces of a text in order; its headings are only in their sections' pieces."""
    pieces: list[Piece] = []
    headings: list[tuple[int, str]] = []
    for block in blocks(text):
        if block.kind == "heading":
            headings = [h for h in headings if h[0] < block.level]
            headings.append((block.level, text[block.start : block.end]))
            continue
        path = tuple(heading for _, heading in headings)
        spans = [(0, block.end - block.start)]
        if block.kind in ("prose", "item"):
            spans = split_sentences(text[block.start : block.end])
        pieces += [Piece(block.kind, block.start + start, block.start + end, path) for start, end in spans]
    return pieces

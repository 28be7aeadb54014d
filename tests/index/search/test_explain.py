"""The parts of an explanation sum to the score, in every mode and for each kind of fusion."""

import math

import numpy as np
import pytest

from embed.network.config import Fusion
from index.index import Index
from index.lexical import live
from index.reading.document import Document
from index.search_index import search_index

TEXTS = [
    "The whale sings, and other whales sing, too.",
    "A whale is a mammal; 3.8 tonnes of it.",
    "Version 3.8 of a program. Python 3.8 sings.",
    "北京大学的学生在大学学习",
    "Nothing of that is here.",
    "the the and of",
]
QUERIES = [
    "whales sing sing",
    "Python 3.8 whale",
    "大学",
    "学",
    "the and",
    "nowhere",
    "whale nothing version",
]


@pytest.fixture(params=["tm2c2", "z", "rrf"])
def index(request, tmp_path, encoder, monkeypatch):
    with Index.create(tmp_path / "index", encoder, max_tokens=32, fusion=Fusion(request.param, 0.6)) as index:
        index.add(Document(f"d{i}", f"{text} {i}", f"Title {i}") for i, text in enumerate(TEXTS * 5))
        yield index


@pytest.mark.parametrize("mode", ["hybrid", "dense", "lexical"])
@pytest.mark.parametrize("by_postings", [False, True])
def test_the_parts_sum_to_the_score(index, mode, by_postings, monkeypatch):
    monkeypatch.setattr(live, "MIN_PASSAGES", 1 if by_postings else 1000)
    index.save_snapshot()
    plain = [index.search(query, 30, mode) for query in QUERIES]
    for query, before in zip(QUERIES, plain, strict=True):
        hits = index.search(query, 30, mode, explain=True)
        assert [(hit.passage_id, hit.score) for hit in hits] == [
            (hit.passage_id, hit.score) for hit in before
        ]
        for hit in hits:
            check(hit, mode, index.settings.fusion)


def check(hit, mode, fusion):
    found = hit.explanation
    shares = [share for share in (found.dense, found.lexical) if share]
    assert sum(share.share for share in shares) == pytest.approx(hit.score, abs=1e-5)
    assert (found.dense is None, found.lexical is None) == (mode == "lexical", mode == "dense")
    for share, score in ((found.dense, hit.dense), (found.lexical, hit.lexical)):
        if not share:
            continue
        assert share.score == score
        if mode == "hybrid" and fusion.kind == "rrf":
            expected = share.weight / (fusion.k + share.rank) if share.rank else 0
        else:
            expected = share.weight * (share.score - share.offset) / share.scale
        assert share.share == pytest.approx(expected, abs=1e-5)
    if mode != "dense":
        assert sum(term.share for term in found.terms) == pytest.approx(hit.lexical, rel=1e-5)
    # FTS5's formula, with the average length that the first term implies
    for term in found.terms:
        assert term.frequency > 0
        assert term.idf > 0
        assert 0 < term.share < term.in_query * term.idf * 2.2
        assert term.in_query == (2 if term.words == "sing" else 1)


def test_frequencies_and_idf_by_hand(index):
    (hit, *_) = [
        hit for hit in index.search("whales sing sing", 30, "lexical", explain=True) if hit.doc_id == "d0"
    ]
    terms = {term.words: term for term in hit.explanation.terms}
    assert {words: (term.frequency, term.in_query) for words, term in terms.items()} == {
        "whales": (2, 1),
        "sing": (2, 2),
    }
    n = len(TEXTS * 5)
    assert terms["whales"].idf == pytest.approx(math.log((n - 10 + 0.5) / (10 + 0.5)))
    (hit, *_) = index.search("3.8", 1, "lexical", explain=True)
    assert {(term.words, term.frequency) for term in hit.explanation.terms} == {("3 8", 2)}
    (hit, *_) = index.search("学", 1, "lexical", explain=True)
    assert [(term.words, term.frequency) for term in hit.explanation.terms] == [("学*", 4)]


def test_vectors_are_explained_and_nothing_is_unless_asked_for(tmp_path):
    with Index.create(tmp_path / "index", dimension=2) as index:
        index.add([Document("a", "text"), Document("b", "text")], np.eye(2))
        assert index.search([1, 0])[0].explanation is None
        hit = index.search([1, 0], explain=True)[0]
        assert (hit.explanation.dense.share, hit.explanation.lexical, hit.explanation.terms) == (
            hit.score,
            None,
            (),
        )


def test_the_command_prints_the_parts(index, capsys):
    index.close()
    search_index("whales sing", index=str(index.folder), k=3, mode="lexical", explain=True)
    out = capsys.readouterr().out
    assert "  words: " in out
    assert "of BM25: whales, 2 × in the passage, 1 × in the query, idf " in out

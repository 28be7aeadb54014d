"""Evaluation of a real index: the best passage counts, and k documents come back."""

from itertools import islice

import numpy as np
import pytest

from embed import Encoder
from embed.network.config import EmbedderConfig
from index import Index
from index.evaluation.built_index import CachingEncoder, built_index, search_documents
from index.evaluation.collection import Collection
from index.reading.document import Document

QUERIES = {"q0": "winter wheat", "q1": "the price of coral", "blank": " "}


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("ZHIZHI_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def collection() -> Collection:
    """A book whose many passages all name the first query's words, and twelve notes of a passage each."""
    documents = [
        Document("book", "Winter wheat is sown in autumn, and wheat is cut in July.\n\n" * 40, "Wheat")
    ]
    for i in range(12):
        documents.append(
            Document(f"note{i}", f"One winter of {i} years; a reef of coral number {i}.", f"N{i}")
        )
    return Collection("farm", "test", {d.id: d for d in documents}, QUERIES, {"q0": {"book": 1}})


def caching(encoder: Encoder) -> CachingEncoder:
    return CachingEncoder(encoder.model, encoder.tokenizer, encoder.config, name=encoder.name)


@pytest.mark.parametrize("mode", ["lexical", "dense", "hybrid"])
@pytest.mark.parametrize("k", [1, 4, 100])
def test_the_k_best_documents_come_back_each_with_its_best_passage(collection, make_encoder, mode, k):
    with built_index(collection, caching(make_encoder(corpus_map="standardise")), 16) as index:
        assert index.stats()["passages"] > 40
        run = search_documents(index, collection.queries, mode, k)
        assert run.keys() == {"q0", "q1"}  # an index refuses a blank query
        for query, found in run.items():
            assert len(found) == min(k, 13) or mode == "lexical"
            expected: dict[str, float] = {}
            for hit in index.search(QUERIES[query], 1000, mode):
                expected[hit.doc_id] = max(expected.get(hit.doc_id, -np.inf), hit.score)
            assert found == pytest.approx(dict(islice(expected.items(), k)), abs=1e-6)
        assert len(run["q0"]) == min(k, 13)  # although the book's passages alone are the first forty


def test_cached_vectors_give_the_index_that_users_build(collection, make_encoder, tmp_path, monkeypatch):
    settings = EmbedderConfig(document_prompt="text: ", query_prompt="query: ")
    plain = make_encoder()
    encoder = Encoder(plain.model, plain.tokenizer, settings, name="tiny")
    hits = []
    with Index.create(tmp_path / "index", encoder, max_tokens=16) as index:
        index.add(collection.documents.values())
        hits.append(index.search(["winter wheat", "coral"], 50))
    for _ in range(2):
        with built_index(collection, caching(encoder), 16) as index:
            hits.append(index.search(["winter wheat", "coral"], 50))
            assert index.settings.dtype == "float16"
        monkeypatch.setattr(
            "embed.encoding.vector_cache.atomic_write", lambda *_: pytest.fail("computed again")
        )
    assert hits[0] == hits[1] == hits[2]


def test_truncated_texts_are_counted_with_and_without_the_cache(make_encoder):
    texts = ["short", "word " * 200]
    for _ in range(2):
        encoder = caching(make_encoder())
        encoder.encode_document(texts)
        assert encoder.n_truncated == 1

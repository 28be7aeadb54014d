"""Ranking precomputed vectors without an index equals searching an index."""

import pytest

from embed.network.config import Fusion
from embed.network.corpus_map import CorpusMap
from index import Index
from index.evaluation.collection import Collection
from index.evaluation.rank_vectors import Retrievers
from index.reading.document import Document

SUBJECTS = ["winter wheat", "steam engines", "coral reefs", "tax law", "string quartets", "北京大学的历史"]


@pytest.mark.parametrize(
    "fusion", [Fusion(), Fusion("z", 0.4), Fusion("rrf")], ids=lambda fusion: fusion.kind
)
def test_runs_equal_index_searches(make_encoder, tmp_path, fusion):
    encoder = make_encoder(corpus_map="standardise", fusion=fusion)
    documents = {f"d{i}": Document(f"d{i}", f"{s} and {SUBJECTS[i - 1]}", s) for i, s in enumerate(SUBJECTS)}
    documents["empty"] = Document("empty", "")
    queries = {f"q{i}": f"what of {subject}?" for i, subject in enumerate(SUBJECTS)}
    collection = Collection("six", "test", documents, queries, {query: {"d0": 1} for query in queries})
    vectors = encoder.encode_document(collection.texts)
    fitted = CorpusMap.fit("standardise", vectors)
    asked = fitted.apply(encoder.encode_query(list(queries.values())))
    retrievers = Retrievers(collection)
    runs = {
        "dense": retrievers.dense(asked, fitted.apply(vectors), 5),
        "hybrid": retrievers.hybrid(asked, fitted.apply(vectors), 5, fusion),
    }
    with Index.create(tmp_path / "index", encoder, max_tokens=64) as index:
        index.add(documents.values(), vectors)
        for mode, run in runs.items():
            for query, hits in zip(queries, index.search(list(queries.values()), 5, mode), strict=True):
                # an index stores vectors in float16
                assert run[query] == pytest.approx({hit.doc_id: hit.score for hit in hits}, abs=2e-3)

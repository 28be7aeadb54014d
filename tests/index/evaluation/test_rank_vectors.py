"""Ranking without an index answers as an index does."""

import pytest

from embed.network.config import Fusion
from embed.network.corpus_map import CorpusMap
from index import Index
from index.evaluation.collection import Collection
from index.evaluation.rank_vectors import Legs
from index.reading.document import Document

SUBJECTS = ["winter wheat", "steam engines", "coral reefs", "tax law", "string quartets", "北京大学的历史"]


@pytest.mark.parametrize(
    "fusion", [Fusion(), Fusion("z", 0.4), Fusion("rrf")], ids=lambda fusion: fusion.kind
)
def test_runs_are_what_an_index_answers(make_encoder, tmp_path, fusion):
    encoder = make_encoder(corpus_map="standardise", fusion=fusion)
    documents = {f"d{i}": Document(f"d{i}", f"{s} and {SUBJECTS[i - 1]}", s) for i, s in enumerate(SUBJECTS)}
    documents["empty"] = Document("empty", "")
    queries = {f"q{i}": f"what of {subject}?" for i, subject in enumerate(SUBJECTS)}
    collection = Collection("six", "test", documents, queries, {query: {"d0": 1} for query in queries})
    vectors = encoder.encode_document(collection.texts)
    fitted = CorpusMap.fit("standardise", vectors)
    asked = fitted.apply(encoder.encode_query(list(queries.values())))
    legs = Legs(collection)
    runs = {
        "dense": legs.dense(asked, fitted.apply(vectors), 5),
        "hybrid": legs.hybrid(asked, fitted.apply(vectors), 5, fusion),
    }
    with Index.create(tmp_path / "index", encoder, max_tokens=64) as index:
        index.add(documents.values(), vectors)
        for mode, run in runs.items():
            for query, hits in zip(queries, index.search(list(queries.values()), 5, mode), strict=True):
                # an index keeps vectors in 16 bits
                assert run[query] == pytest.approx({hit.doc_id: hit.score for hit in hits}, abs=2e-3)

"""Search compared with brute force over the added documents."""

import threading
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from embed.encoding.encoder import Encoder
from embed.network.config import Fusion
from embed.network.corpus_map import CorpusMap
from gpt_core.common.errors import InputError
from index.dense import live
from index.dense import view as dense
from index.index import Index
from index.lexical.matches import Matches
from index.reading.document import Document
from index.search import rank

# isort: split
import faiss

D = 8
WORDS = ["python", "rust", "garbage", "collector", "大学", "学生", "type", "checker"]


def corpus(n: int, seed: int = 0) -> tuple[list[Document], np.ndarray]:
    rng = np.random.default_rng(seed)
    documents = [
        Document(f"d{i}", " ".join(rng.choice(WORDS, 5)), "", {"even": i % 2 == 0, "i": i}) for i in range(n)
    ]
    vectors = rng.normal(size=(n, D)).astype(np.float32)
    return documents, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


@pytest.fixture
def index(tmp_path):
    with Index.create(tmp_path / "index", dimension=D) as index:
        yield index


@pytest.mark.parametrize("n_queries", [1, 7, 8, 64])
def test_dense_search_equals_brute_force(index, n_queries):
    documents, vectors = corpus(300)
    index.add(documents, vectors)
    queries = np.random.default_rng(1).normal(size=(n_queries, D)).astype(np.float32)
    cosines = queries / np.linalg.norm(queries, axis=1, keepdims=True) @ vectors.T
    results = index.search(queries, k=5)
    assert len(results) == n_queries
    for hits, row in zip(results, cosines, strict=True):
        assert [hit.doc_id for hit in hits] == [f"d{i}" for i in np.argsort(-row)[:5]]
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(row)[::-1][:5], atol=1e-5)
    assert index.search(queries[0], k=5) == index.search(list(map(float, queries[0])), k=5)
    assert [h.doc_id for h in index.search(queries[0], k=5)] == [h.doc_id for h in results[0]]


class Changes(RuleBasedStateMachine):
    """Any sequence of changes and searches. `expected` has the vectors that the index should have, by document.

    Snapshots are made, blocks joined and deletions forgotten every few changes. A second handle searches at times only,
    so its view is of any age.
    """

    folders: ClassVar[Any] = None
    documents, vectors = corpus(60)
    chosen = st.lists(st.integers(0, 59), min_size=1, max_size=20, unique=True)

    def __init__(self) -> None:
        super().__init__()
        self.folder = self.folders.mktemp("changes") / "index"
        self.index = Index.create(self.folder, dimension=D)
        self.other = Index.open(self.folder)
        self.expected: dict[str, np.ndarray] = {}

    def teardown(self) -> None:
        assert self.index.stats()["documents"] == self.index.stats()["passages"] == len(self.expected)
        self.index.close()
        self.other.close()

    @rule(chosen=chosen)
    def add(self, chosen: list[int]) -> None:
        chosen = [i for i in chosen if f"d{i}" not in self.expected]
        self.index.add([self.documents[i] for i in chosen], self.vectors[chosen].reshape(-1, D))
        self.expected |= {f"d{i}": self.vectors[i] for i in chosen}

    @rule(chosen=chosen, version=st.integers(0, 9))
    def upsert(self, chosen: list[int], version: int) -> None:
        new = [Document(f"d{i}", f"version {version}") for i in chosen]
        known = [one for one in new if (old := self.index.get(one.id)) and old.text == one.text]
        assert self.index.upsert(new, -self.vectors[chosen]).unchanged == len(known)
        self.expected |= {f"d{i}": -self.vectors[i] for i in chosen}

    @rule(chosen=chosen)
    def delete(self, chosen: list[int]) -> None:
        ids = [f"d{i}" for i in chosen]
        assert self.index.delete(ids) == sum(doc_id in self.expected for doc_id in ids)
        for doc_id in ids:
            self.expected.pop(doc_id, None)

    @rule()
    def delete_the_nearest(self) -> None:
        """So that the best rows of the blocks are deleted ones."""
        self.delete([int(doc_id[1:]) for doc_id in self.nearest(self.vectors[0])[:20]])

    @rule()
    def save(self) -> None:
        self.index.save_snapshot()

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = Index.open(self.folder)

    @rule(k=st.sampled_from([1, 3, 100]), n_queries=st.sampled_from([1, 9]), other=st.booleans())
    def search(self, k: int, n_queries: int, other: bool) -> None:
        queries = self.vectors[:n_queries]
        for query, hits in zip(
            queries, (self.other if other else self.index).search(queries, k), strict=True
        ):
            assert [hit.doc_id for hit in hits] == self.nearest(query)[:k]

    def nearest(self, query: np.ndarray) -> list[str]:
        return sorted(self.expected, key=lambda doc_id: -float(self.expected[doc_id] @ query))


def test_any_sequence_of_changes_gives_the_expected_contents(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(dense, "MAX_CHANGES", 7)
    monkeypatch.setattr(dense, "SMALL_BLOCK", 3)
    monkeypatch.setattr(dense, "ROWS_PER_STEP", 4)
    monkeypatch.setattr(live, "MIN_FORGOTTEN", 2)
    monkeypatch.setattr(Changes, "folders", tmp_path_factory)
    run_state_machine_as_test(Changes, settings=settings(max_examples=15, stateful_step_count=20))


def half_deleted(n: int = 400) -> tuple[list[Document], list[Document], np.ndarray]:
    """Documents, those of them that are left after half of them is deleted, and the vectors of all.

    Document i has the cosine cos(i / n) with the query (1, 0, …). The deleted ones are the nearest, but every tenth.
    """
    angles = np.arange(n) / n
    vectors = np.zeros((n, D), dtype=np.float32)
    vectors[:, 0], vectors[:, 1] = np.cos(angles), np.sin(angles)
    documents = [Document(f"d{i}", f"document number{i} of the corpus") for i in range(n)]
    left = [document for i, document in enumerate(documents) if i >= n * 5 // 9 or i % 10 == 9]
    return documents, left, vectors


@pytest.mark.parametrize("saved", [True, False])
@pytest.mark.parametrize("n_queries", [1, 9])
def test_dense_search_finds_k_passages_behind_deleted_ones(index, saved, n_queries):
    documents, left, vectors = half_deleted()
    index.add(documents, vectors)
    if saved:
        index.save_snapshot()
    index.search(vectors[0])
    index.delete([document.id for document in documents if document not in left])
    queries = np.eye(1, D, dtype=np.float32).repeat(n_queries, axis=0)
    for k in (1, 3, 10, 400):
        for hits in index.search(queries, k):
            assert [hit.doc_id for hit in hits] == [document.id for document in left[:k]]


@pytest.mark.parametrize("kind", ["tm2c2", "z", "rrf"])
def test_hybrid_search_takes_candidates_from_both_retrievers(tmp_path, make_encoder, kind):
    """400 documents, of which half are deleted, and k = 3, so that at most 100 of 200 are candidates of each."""
    encoder = make_encoder(fusion=Fusion(kind, 0.5))
    documents, left, vectors = half_deleted()
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=0) as index:
        query = "number399"
        vectors = np.pad(vectors, ((0, 0), (0, encoder.dimension - D)))
        # The query is the first of an orthogonal basis, so document i has the cosine cos(i / 400) with it.
        basis = np.linalg.qr(np.column_stack([encoder.encode_query(query)[0], np.eye(encoder.dimension)]))[0]
        basis[:, 0] = encoder.encode_query(query)[0]
        index.add(documents, vectors @ basis[:, : encoder.dimension].T)
        index.save_snapshot()
        index.search(query)
        index.delete([document.id for document in documents if document not in left])
        hits = index.search(query, k=3)
        # The only document with the query's word is the last of 200 by cosine; the others have no word of it.
        assert {hit.doc_id for hit in hits} == {"d399", left[0].id, left[1].id}
        only = next(hit for hit in hits if hit.doc_id == "d399")
        assert only.lexical > 0
        assert only.dense == pytest.approx(np.cos(399 / 400), abs=2e-3)
        assert [hit.doc_id for hit in index.search(query, k=3, mode="dense")] == [d.id for d in left[:3]]


@pytest.mark.parametrize("kind", ["tm2c2", "z", "rrf"])
def test_hybrid_search_equals_the_formula_over_the_whole_corpus(tmp_path, make_encoder, kind):
    fusion = Fusion(kind, 0.6)
    encoder = make_encoder(fusion=fusion)
    texts = [document.text for document in corpus(90, seed=3)[0]]
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=0) as index:
        index.add(Document(f"d{i}", text) for i, text in enumerate(texts))
        query = "which type checker do 大学生 use"
        stored = encoder.encode_document(texts).astype(np.float16).astype(np.float32)
        cosines = (encoder.encode_query(query) @ stored.T)[0]
        bm25 = np.zeros(90)
        for hit in index.search(query, k=90, mode="lexical"):
            bm25[int(hit.doc_id[1:])] = hit.lexical
        assert 20 < np.count_nonzero(bm25) < 90
        if kind == "tm2c2":
            expected = 0.6 * (cosines + 1) / 2 + 0.4 * bm25 / bm25.max()
        elif kind == "z":
            expected = (
                0.6 * (cosines - cosines.mean()) / cosines.std() + 0.4 * (bm25 - bm25.mean()) / bm25.std()
            )
        else:
            ranks = [np.argsort(np.argsort(-scores, kind="stable")) + 1 for scores in (cosines, bm25)]
            expected = 1 / (60 + ranks[0]) + np.where(bm25 > 0, 1 / (60 + ranks[1]), 0)
        hits = index.search(query, k=10)
        np.testing.assert_allclose([hit.score for hit in hits], np.sort(expected)[::-1][:10], atol=2e-3)
        for hit in hits:
            i = int(hit.doc_id[1:])
            assert (hit.dense, hit.lexical) == pytest.approx((cosines[i], bm25[i]), abs=1e-5)
        for batch in index.search([query, query], k=10):
            assert [hit.score for hit in batch] == pytest.approx([hit.score for hit in hits], abs=1e-5)
        assert index.settings.fusion == fusion
        assert index.search(query, filter={"doc_id": "none of these"}) == []


def test_hybrid_search_keeps_the_matches_of_one_query_at_a_time(tmp_path, encoder, monkeypatch):
    calls = []
    find, fuse = Matches.find, rank.fuse
    monkeypatch.setattr(Matches, "find", lambda *a, **k: calls.append("find") or find(*a, **k))
    monkeypatch.setattr(rank, "fuse", lambda *a: calls.append("fuse") or fuse(*a))
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=0) as index:
        index.add(corpus(20)[0])
        assert len(index.search(["python", "rust", "type"], k=2)) == 3
    assert calls == ["find", "fuse"] * 3


def test_z_spread_is_exact_after_changes(index, monkeypatch):
    monkeypatch.setattr(dense, "MAX_CHANGES", 50)
    documents, vectors = corpus(200)
    index.add(documents[:100], vectors[:100])
    index.save_snapshot()
    index.search(vectors[0])
    index.add(documents[100:130], vectors[100:130])
    index.delete([f"d{i}" for i in range(95, 105)])
    with index._current().current() as (_, view):
        alive = [i for i in range(130) if not 95 <= i < 105]
        assert len(view.deleted) == 5
        assert sum(map(len, view.newer)) == 25
        scores = vectors[alive].astype(np.float64) @ vectors[199]
        assert view.spread(vectors[199]) == pytest.approx((scores.mean(), scores.std()), rel=1e-5)


@pytest.mark.parametrize("mode", ["dense", "hybrid", "lexical"])
def test_a_filtered_search_finds_k_hits_if_k_match(tmp_path, encoder, mode):
    documents = [
        Document(f"d{i}", f"python number {i} says hello", "", {"rare": i % 97 == 0}) for i in range(400)
    ]
    with Index.create(tmp_path / "index", encoder, max_tokens=16, overlap=0) as index:
        index.add(documents)
        for k in (1, 3, 5, 50):
            hits = index.search("python hello", k=k, mode=mode, filter={"rare": True})
            assert len(hits) == min(k, 5)
            assert all(hit.metadata["rare"] for hit in hits)
        assert index.search("python", mode=mode, filter={"rare": "no such value"}) == []


@pytest.mark.parametrize("kind", ["whiten", "half-whiten"])
def test_the_corpus_map_is_fitted_at_the_first_build_and_on_request(tmp_path, make_encoder, kind):
    encoder = make_encoder(corpus_map=kind, map_components=6)
    texts = [document.text for document in corpus(70)[0]]
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=0) as index:
        index.add(Document(f"d{i}", text) for i, text in enumerate(texts[:40]))
        assert index.settings.dtype == "float32"
        for n in (40, 70):
            vectors = encoder.encode_document(texts)
            fitted = CorpusMap.fit(kind, vectors[:n], 6)
            query = encoder.encode_query("python type 大学")
            expected = (fitted.apply(query) @ fitted.apply(vectors[:n]).T)[0]
            for hits in (index.search("python type 大学", 5, "dense"), index.search(query[0], 5)):
                np.testing.assert_allclose([h.score for h in hits], np.sort(expected)[::-1][:5], atol=1e-4)
            index.add(Document(f"d{i}", text) for i, text in enumerate(texts))
            assert index.stats()["map_passages"] == n  # adding alone does not fit again
            index.refit_map()
            assert index.stats()["map_passages"] == 70


def test_the_map_is_refitted_while_documents_are_added_one_at_a_time(tmp_path, make_encoder):
    encoder = make_encoder(corpus_map="standardise")
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=0) as index:
        sizes = []
        for document in corpus(20)[0]:
            index.add(document)
            sizes.append((index.stats()["map_passages"], index.stats()["passages"]))
        assert all(fitted > there / 2 for fitted, there in sizes[1:])
        assert len(dict(sizes)) < 8  # but not after every document


def test_an_index_loads_the_embedder_that_it_records(tmp_path, make_encoder):
    encoder = make_encoder()
    encoder.model.save_pretrained(tmp_path / "model")
    encoder.tokenizer.save(tmp_path / "model")
    (tmp_path / "model" / "embedder.json").write_text(encoder.config.to_json())
    saved = Encoder.from_pretrained(tmp_path / "model")
    with Index.create(tmp_path / "index", saved, max_tokens=32) as index:
        index.add(Document("a", "python types"))
        expected = index.search("python")
    for embedder in (None, tmp_path / "model", str(tmp_path / "model")):
        with Index.open(tmp_path / "index", embedder) as index:
            assert index.search("python") == expected
    (tmp_path / "model" / "embedder.json").write_text(make_encoder(query_prompt="q: ").config.to_json())
    with Index.open(tmp_path / "index") as index:
        assert index.search("python", mode="lexical")  # needs no embedder
        with pytest.raises(InputError, match="was built with"):
            index.search("python")


def test_refitting_without_a_map_is_refused(index):
    with pytest.raises(InputError, match="needs no corpus map"):
        index.refit_map()


def test_titles_are_embedded_and_searched_but_are_not_part_of_a_passage(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=4) as index:
        index.add(Document("a", "It is about indentation. " * 20, "Zebra stripes"))
        hits = index.search("zebra", mode="lexical")
        assert len(hits) > 2
        document = index.get("a")
        for hit in hits:
            assert hit.text == document.text[hit.start : hit.end]
            assert "Zebra" not in hit.text
        whole = encoder.encode_document(f"Zebra stripes {hits[0].text}")
        assert index.search(whole[0], k=1)[0].score == pytest.approx(1, abs=1e-3)


def test_truncated_texts_are_counted(tmp_path, encoder):
    with Index.create(
        tmp_path / "index", encoder, max_tokens=64, overlap=0, passages_per_document=2
    ) as index:
        long = "One two three four five six seven. " * 100
        changes = index.add(
            [
                Document("long", long),
                Document("short", "x"),
                Document("none", ""),
                Document("t", long, "title " * 200),
            ]
        )
        assert (changes.added, changes.empty, changes.shortened, changes.passages) == (4, 1, 2, 5)
        assert changes.truncated == 2  # the title alone is longer than the model's context
        encoder.n_truncated = 0
        index.search(long, k=1)
        assert encoder.n_truncated == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"query": ""}, "query is empty"),
        ({"query": " \n"}, "query is empty"),
        ({"query": ["a", ""]}, "query is empty"),
        ({"query": "\ud83d"}, "unpaired surrogate"),
        ({"query": "x", "k": 0}, "k is 0"),
        ({"query": "x", "k": True}, "k is True"),
        ({"query": "x", "mode": "fuzzy"}, "mode is 'fuzzy'; expected hybrid, dense, lexical"),
        ({"query": np.zeros(3)}, r"vectors have the shape \(3,\)"),
        ({"query": np.full(D, np.nan)}, "NaN or infinite"),
        ({"query": [1, "x"]}, "not arrays of numbers"),
        ({"query": np.ones(D), "mode": "lexical"}, "needs a text"),
        ({"query": "x"}, "built from precomputed vectors"),
    ],
)
def test_bad_queries_are_refused(index, arguments, message):
    with pytest.raises(InputError, match=message):
        index.search(**arguments)


def test_an_empty_index_finds_nothing_and_an_empty_batch_too(tmp_path, encoder):
    with Index.create(tmp_path / "index", encoder, max_tokens=32, overlap=0) as index:
        for mode in ("hybrid", "dense", "lexical"):
            assert index.search("x", mode=mode) == []
            assert index.search(["x", "y"], mode=mode, filter={"a": 1}) == [[], []]
            assert index.search([], mode=mode) == []
        assert index.search(np.empty((0, 16))) == []


def test_many_threads_search_while_one_writes(index):
    """Every search sees one committed state: all queries of a batch find the same number of passages."""
    documents, vectors = corpus(400)
    index.add(documents[:100], vectors[:100])
    failures: list[BaseException] = []
    finished = threading.Event()

    def search() -> None:
        try:
            while not finished.is_set():
                hits = index.search(vectors[:9], k=1000)
                assert {len(row) for row in hits} <= set(range(100, 401, 10))
                assert len({len(row) for row in hits}) == 1
        except BaseException as error:  # reported by the main thread
            failures.append(error)

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for start in range(100, 400, 10):
        index.add(documents[start : start + 10], vectors[start : start + 10])
    finished.set()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(index.search(vectors[0], k=1000)) == 400


def test_a_search_thread_uses_no_more_threads_than_torch(index):
    """OpenMP, which FAISS uses, has this limit per thread; in a new thread it is the system's default."""
    documents, vectors = corpus(20)
    index.add(documents, vectors)
    used: list[int] = []

    def search() -> None:
        index.search(vectors, k=3)
        used.append(faiss.omp_get_max_threads())

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    thread = threading.Thread(target=search)
    thread.start()
    thread.join()
    torch.set_num_threads(before)
    assert used == [1]

"""Approximate search: right scores, never too few hits, no deleted passage, whatever happens to the files."""

import json
import os
import random
import subprocess
import sys
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

from embed.data.vectors import unit_length
from gpt_core.common.errors import InputError
from index.dense import ann, checksums, live, snapshot, tuning, view
from index.dense.ann import Ann, Wanted, choose, make
from index.dense.checksums import Checksums, ChecksumWriter
from index.dense.manifest import MANIFEST
from index.dense.tuning import build, tune
from index.index import Index
from index.reading.document import Document
from index.search.rank import Hits

D = 16


def clustered(n: int, seed: int = 0) -> np.ndarray:
    """Unit vectors around 30 centres: an IVF finds their neighbours in few lists."""
    centres = np.random.default_rng(7).normal(size=(30, D))
    rng = np.random.default_rng(seed)
    return unit_length((centres[rng.integers(30, size=n)] + 0.5 * rng.normal(size=(n, D))).astype(np.float32))


VECTORS = clustered(600)
QUERIES = clustered(12, seed=1)


def documents(numbers) -> list[Document]:
    return [Document(f"d{i}", f"text {i}", metadata={"third": i % 3, "i": i}) for i in numbers]


def check(hits: Hits, query: np.ndarray, vectors: dict[str, np.ndarray], k: int) -> float:
    """Check number, order, scores and identity of hits; returns the share of the nearest that was found."""
    scores = {doc_id: float(vector @ query) for doc_id, vector in vectors.items()}
    nearest = sorted(scores, key=lambda doc_id: -scores[doc_id])[:k]
    ids = [hit.doc_id for hit in hits]
    assert len(set(ids)) == len(ids) == min(k, len(vectors))
    assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)
    np.testing.assert_allclose([hit.score for hit in hits], [scores[doc_id] for doc_id in ids], atol=1e-5)
    if hits.exact:
        np.testing.assert_allclose([scores[i] for i in ids], [scores[i] for i in nearest], atol=1e-5)
    return len(set(ids) & set(nearest)) / max(len(nearest), 1)


@pytest.fixture
def small(monkeypatch) -> None:
    """Limits that let a small index be searched approximately, and checked in the background."""
    monkeypatch.setattr(view, "EXACT_AMONG", 20)
    monkeypatch.setattr(view, "MAX_CHANGES", 40)
    monkeypatch.setattr(snapshot, "CHECKED_AT_ONCE", 0)
    monkeypatch.setattr(checksums, "BLOCK", 4096)
    monkeypatch.setattr(live, "MIN_FORGOTTEN", 2)
    monkeypatch.setattr(tuning, "QUERIES", 64)


@pytest.fixture
def folder(tmp_path, small) -> Path:
    with Index.create(tmp_path / "index", dimension=D, faiss="IVF16,RaBitQfs") as index:
        index.add(documents(range(500)), VECTORS[:500])
        index.save_snapshot()
        assert index.stats()["vectors"]["type"] == "IVF16,RaBitQfs"
    return tmp_path / "index"


class Changes(RuleBasedStateMachine):
    """Any sequence of changes and searches, with filters; `expected` has the vectors that the index should have."""

    folders: ClassVar[Any] = None
    chosen = st.lists(st.integers(0, 299), min_size=1, max_size=40, unique=True)

    def __init__(self) -> None:
        super().__init__()
        folder = self.folders.mktemp("changes") / "index"
        self.index = Index.create(folder, dimension=D, faiss="IVF8,SQ8", recall=0.8)
        self.other = Index.open(folder)
        self.index.add(documents(range(150)), VECTORS[:150])
        self.index.save_snapshot()
        self.expected = {f"d{i}": VECTORS[i] for i in range(150)}

    def teardown(self) -> None:
        self.index.close()
        self.other.close()

    @rule(chosen=chosen)
    def upsert(self, chosen: list[int]) -> None:
        new = [Document(f"d{i}", f"other {i}", metadata={"third": i % 3, "i": i}) for i in chosen]
        self.index.upsert(new, VECTORS[300 + np.array(chosen)])
        self.expected |= {f"d{i}": VECTORS[300 + i] for i in chosen}

    @rule(chosen=chosen)
    def delete(self, chosen: list[int]) -> None:
        self.index.delete([f"d{i}" for i in chosen])
        for i in chosen:
            self.expected.pop(f"d{i}", None)

    @rule()
    def delete_the_nearest(self) -> None:
        ranked = sorted(self.expected, key=lambda doc_id: -float(self.expected[doc_id] @ QUERIES[0]))
        self.delete([int(doc_id[1:]) for doc_id in ranked[:20]])

    @rule(
        factory=st.sampled_from(["IVF8,SQ8", "IVF4,RaBitQfs", "SQ8", "MRL12,RaBitQ", "Flat", "IVF999,Flat"])
    )
    def save(self, factory: str) -> None:
        self.index.set_faiss(factory)
        self.index.save_snapshot()

    @rule()
    def reopen(self) -> None:
        self.index.close()
        self.index = Index.open(self.index.folder)

    @rule(
        k=st.sampled_from([1, 3, 15, 1000]),
        n_queries=st.sampled_from([1, 9]),
        other=st.booleans(),
        filter=st.sampled_from([None, {"third": 1}, {"third": [0, 2]}, {"i": {"gte": 290}}, {"i": -1}]),
    )
    def search(self, k: int, n_queries: int, other: bool, filter: Any) -> None:
        thirds = {1} if filter == {"third": 1} else {0, 2} if filter and "third" in filter else {0, 1, 2}
        least = 290 if filter and "gte" in str(filter) else 0
        passing = {
            doc_id: vector
            for doc_id, vector in self.expected.items()
            if int(doc_id[1:]) % 3 in thirds and int(doc_id[1:]) >= least and filter != {"i": -1}
        }
        index = self.other if other else self.index
        for query, hits in zip(QUERIES, index.search(QUERIES[:n_queries], k, filter=filter), strict=False):
            check(hits, query, passing, k)


def test_any_sequence_of_changes_gives_right_hits(tmp_path_factory, small, monkeypatch):
    monkeypatch.setattr(Changes, "folders", tmp_path_factory)
    run_state_machine_as_test(Changes, settings=settings(max_examples=8, stateful_step_count=10))


@pytest.mark.parametrize(
    "factory", ["IVF16,RaBitQfs", "IVF16,SQ8", "IVF16,Flat", "SQ8", "RaBitQ", "MRL14,Flat"]
)
def test_the_recall_is_that_which_was_asked_for_and_is_reported(tmp_path, small, factory):
    with Index.create(tmp_path / "index", dimension=D, faiss=factory, recall=0.9) as index:
        index.add(documents(range(600)), VECTORS)
        index.save_snapshot()
        report = index.stats()["vectors"]
        assert report["type"] == factory
        assert all(0.9 <= value <= 1 for value in report["recall"].values())
        vectors = {f"d{i}": vector for i, vector in enumerate(VECTORS)}
        queries = clustered(100, seed=2)
        found = index.search(queries, 10)
        recalls = [check(hits, query, vectors, 10) for hits, query in zip(found, queries, strict=True)]
        assert np.mean(recalls) >= 0.87
        assert not found[0].exact
        assert index.search(queries[:1], 100)[0].exact  # a tenth of the passages or more


def test_a_recall_that_cannot_be_reached_makes_search_exact(folder, capsys):
    with Index.open(folder) as index:
        index.set_faiss("MRL2,Flat", 1.0)
        index.save_snapshot()
        report = index.stats()["vectors"]
        assert (report["type"], report["recall"]) == ("Flat", 1.0)
        assert report["note"] == "MRL2,Flat does not reach the recall 1.0."
        assert index.search(QUERIES[0], 10).exact


def test_the_settings_hold_for_every_process(folder):
    with Index.open(folder) as other, Index.open(folder) as index:
        other.search(QUERIES[0])
        index.set_faiss("IVF4,SQ8")
        other.search(QUERIES[0])
        other._current()._wait()
        assert index.stats()["wanted"] == {"faiss": "IVF4,SQ8", "recall": 0.95}
        assert index.stats()["vectors"]["type"] == "IVF4,SQ8"


@pytest.mark.parametrize(
    ("factory", "recall", "named"),
    [
        ("IVF,SQ8", 0.9, "'IVF,SQ8'; expected"),
        ("HNSW32", 0.9, "'HNSW32'; expected"),
        ("RaBitQfs", 0.9, "'RaBitQfs'; expected"),
        ("SQ8,RFlat", 0.9, "Candidates are always scored"),
        ("MRL17,Flat", 0.9, "16 dimensions"),
        ("MRL8,PCA4,Flat", 0.9, "after MRL"),
        ("Flat", 0, "recall is 0"),
        ("Flat", 1.1, "recall is 1.1"),
    ],
)
def test_bad_settings_are_named_and_leave_nothing_behind(tmp_path, factory, recall, named):
    with pytest.raises(InputError, match=named):
        Index.create(tmp_path / "index", dimension=D, faiss=factory, recall=recall)
    assert not (tmp_path / "index").exists()


def flip(path: Path, place: int) -> None:
    with open(path, "r+b") as file:
        file.seek(place)
        (value,) = file.read(1)
        file.seek(place)
        file.write(bytes([value ^ 0x40]))


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("snapshot-*/*"))


def blocks() -> list[tuple[str, float]]:
    """A place in each block of each file of `folder`: name, and number of the block as a share of the file."""
    return [
        *(("vectors.npy", share) for share in (0.001, 0.01, 0.3, 0.6, 0.999)),
        *((name, share) for name in ("ann.faiss", "numbers.npy", "moments.npy") for share in (0.02, 0.9)),
    ]


@pytest.mark.parametrize(("name", "share"), blocks())
def test_a_flipped_byte_in_any_block_changes_no_result(folder, name, share):
    (path,) = folder.glob(f"snapshot-*/{name}")
    flip(path, int(share * path.stat().st_size))
    vectors = {f"d{i}": VECTORS[i] for i in range(500)}
    with Index.open(folder) as index:
        for k in (10, 1000):  # before and after the background's check
            for query, hits in zip(QUERIES, index.search(QUERIES, k), strict=True):
                assert check(hits, query, vectors, k) >= 0.5
            index._current()._wait()
        index.search(QUERIES[0], 10)
        index.save_snapshot()
    assert not path.exists()
    with Index.open(folder) as index:
        assert index.stats()["vectors"]["type"] == "IVF16,RaBitQfs"
        check(index.search(QUERIES[0], 10), QUERIES[0], vectors, 10)


def test_until_vectors_are_checked_scores_come_from_the_store(folder, monkeypatch):
    """Also for a hybrid search's statistics, of deleted passages too."""
    monkeypatch.setattr(live.LiveView, "_maintain", lambda *_: None)
    for path in folder.glob("snapshot-*/vectors.npy"):
        with open(path, "r+b") as file:
            file.seek(128)
            file.write((-VECTORS[:500]).tobytes())
    vectors = {f"d{i}": VECTORS[i] for i in range(500)}
    with Index.open(folder) as index:
        for query, hits in zip(QUERIES, index.search(QUERIES, 10), strict=True):
            assert check(hits, query, vectors, 10) >= 0.9  # the FAISS index gives the candidates
            assert not hits.exact
        third = {name: vector for i, (name, vector) in enumerate(vectors.items()) if i % 3 == 1}
        check(index.search(QUERIES[0], 500, filter={"third": 1}), QUERIES[0], third, 500)


def test_the_statistics_of_scores_are_right_on_a_damaged_snapshot(folder):
    """Those of hybrid search, also without the deleted passages, whose vectors are in the snapshot only."""
    (path,) = folder.glob("snapshot-*/vectors.npy")
    flip(path, 128 + 3)
    with Index.open(folder) as index:
        index.delete([f"d{i}" for i in range(30)])
        with index._current().store.read() as tx:
            damaged = view.catch_up(None, index._current().store, tx)
            stored = view.Stored(index._current().store, tx, damaged.corpus_map)
            spread = replace(damaged, stored=stored).spread(QUERIES[0])
        assert damaged.base.is_damaged
        scores = VECTORS[30:500] @ QUERIES[0]
        assert spread == pytest.approx((scores.mean(), scores.std()), abs=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_a_truncated_file_is_seen_when_it_is_opened(folder, seed):
    rng = random.Random(seed)
    path = rng.choice(files(folder))
    os.truncate(path, rng.randrange(path.stat().st_size))
    with Index.open(folder) as index:
        assert index.stats()["vectors"] is None
        hits = index.search(QUERIES[0], 10)
        assert hits.exact
        check(hits, QUERIES[0], {f"d{i}": VECTORS[i] for i in range(500)}, 10)


def test_a_snapshot_of_an_older_format_is_ignored_and_rebuilt(folder):
    content = json.loads((folder / MANIFEST).read_text())
    old = {name: content[name] for name in ("identity", "map_hash", "sequence")} | {
        "file": "snapshot-1.faiss"
    }
    (folder / MANIFEST).write_text(json.dumps(old))
    (folder / "snapshot-1.faiss").write_bytes(b"IxMp")
    with Index.open(folder) as index:
        assert index.stats()["vectors"] is None
        assert index.search(QUERIES[0], 10).exact
        index.save_snapshot()
        assert index.stats()["vectors"]["type"] == "IVF16,RaBitQfs"
    assert not (folder / "snapshot-1.faiss").exists()


SEARCHER = """
import sys
import numpy as np
from index.dense import view
from index.index import Index
view.MAX_CHANGES = 20
queries = np.load(sys.argv[2])
with Index.open(sys.argv[1]) as index:
    for _ in range(30):
        for hits in index.search(queries, 10):
            assert len({hit.doc_id for hit in hits}) == 10
            assert not any(int(hit.doc_id[1:]) < 100 for hit in hits)
"""


def test_a_process_searches_while_another_writes(folder, tmp_path):
    with Index.open(folder) as index:
        index.delete([f"d{i}" for i in range(100)])
        np.save(tmp_path / "queries.npy", QUERIES)
        arguments = [sys.executable, "-c", SEARCHER, str(folder), str(tmp_path / "queries.npy")]
        searcher = subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True)
        try:
            for i in range(500, 560):
                index.add(documents([i]), VECTORS[i : i + 1])
                if i % 20 == 0:
                    index.save_snapshot()
            _, errors = searcher.communicate(timeout=60)
        finally:
            with suppress(ProcessLookupError):
                searcher.kill()
    assert searcher.returncode == 0, errors


@pytest.mark.parametrize("share", [0.5, 0.05, 0.01])
def test_filtered_search_finds_k_of_those_that_pass(folder, share):
    rng = np.random.default_rng(0)
    vectors = clustered(1500, seed=3)
    with Index.create(folder.with_name("filtered"), dimension=D, faiss="IVF32,RaBitQfs") as index:
        passing = rng.random(1500) < share
        index.add(
            [Document(f"d{i}", "", metadata={"passes": bool(passing[i])}) for i in range(1500)], vectors
        )
        index.save_snapshot()
        wanted = {f"d{i}": vectors[i] for i in np.flatnonzero(passing)}
        found = index.search(QUERIES, 10, filter={"passes": True})
        recalls = [check(hits, query, wanted, 10) for hits, query in zip(found, QUERIES, strict=True)]
        assert np.mean(recalls) >= 0.95
        assert found[0].exact == (share < 0.1)


def test_checksums_are_of_blocks(tmp_path, monkeypatch):
    monkeypatch.setattr(checksums, "BLOCK", 10)
    with open(tmp_path / "file", "wb") as file:
        writer = ChecksumWriter(file)
        for size in (3, 0, 25, 7):
            writer.write(bytes(range(size)))
        sums = writer.checksums()
    assert (sums.size, len(sums.blocks)) == (35, 4)
    assert sums.are_of(tmp_path / "file")
    assert sums == Checksums(35, sums.blocks)
    for place in (0, 9, 10, 34):
        flip(tmp_path / "file", place)
        assert not sums.are_of(tmp_path / "file")
        flip(tmp_path / "file", place)
    os.truncate(tmp_path / "file", 34)
    assert not sums.are_of(tmp_path / "file")


def test_the_type_follows_from_number_and_dimension():
    assert choose(1000, 384) == choose(130_000, 384) == ()
    assert choose(1_000_000, 384) == ("IVF4000,RaBitQfs", "IVF4000,SQ8")
    assert choose(130_000, 1024)


def test_tuning_takes_more_lists_for_more_recall():
    built = Ann.build("IVF16,RaBitQfs", VECTORS)
    efforts = [tune(built, VECTORS, target) for target in (0.5, 0.99)]
    (low, low_recalls), (high, high_recalls) = (one for one in efforts if one)
    assert low[0].probes * low[0].candidates < high[0].probes * high[0].candidates
    assert low_recalls[0] >= 0.5
    assert high_recalls[0] >= 0.99
    assert make("IVF16,RaBitQfs", D).nlist == 16


def test_where_one_bit_is_too_little_the_automatic_type_has_eight(monkeypatch):
    monkeypatch.setattr(ann, "FLAT_BYTES", 1000)
    monkeypatch.setattr(tuning, "CANDIDATES", (1,))
    assert build(VECTORS, Wanted(recall=0.97))[1].type == "IVF96,SQ8"
    assert build(VECTORS, Wanted(recall=0.5))[1].type == "IVF96,RaBitQfs"

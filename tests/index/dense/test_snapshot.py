"""The snapshot is a cache: missing, damaged or stale, it does not change search results."""

import json
import resource
import shutil
import threading
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest

from embed.network.corpus_map import CorpusMap
from index.dense import live, snapshot, view
from index.dense.ann import Wanted
from index.dense.block import Block
from index.dense.manifest import MANIFEST, State
from index.dense.snapshot import LOCK, Snapshot
from index.dense.view import View
from index.index import Index
from index.reading.document import Document
from index.store.store import FILE as STORE_FILE
from index.store.store import Store

D = 8
VECTORS = np.random.default_rng(0).normal(size=(60, D)).astype(np.float32)
QUERY = np.random.default_rng(1).normal(size=D)


def documents(n: int) -> list[Document]:
    return [Document(f"d{i}", f"text {i}") for i in range(n)]


def found(folder) -> list[tuple[str, float]]:
    with Index.open(folder) as index:
        return [(hit.doc_id, round(hit.score, 5)) for hit in index.search(QUERY, k=100)]


@pytest.fixture
def folder(tmp_path):
    with Index.create(tmp_path / "index", dimension=D) as index:
        index.add(documents(50), VECTORS[:50])
        index.save_snapshot()
    return tmp_path / "index"


def file(folder, name: str = "vectors.npy") -> Path:
    """A file of the only snapshot in the folder."""
    (path,) = folder.glob(f"snapshot-*/{name}")
    return path


def is_used(folder, monkeypatch) -> bool:
    """Whether opening and searching reads the snapshot instead of the store's vectors."""
    used = []
    load = Snapshot.load
    monkeypatch.setattr(Snapshot, "load", lambda *a: used.append(load(*a)) or used[-1])
    found(folder)
    monkeypatch.undo()
    return used[-1] is not None


def test_the_snapshot_opens_in_numpy(folder):
    vectors = np.load(file(folder), mmap_mode="r")
    np.testing.assert_allclose(
        vectors @ VECTORS[0], VECTORS[:50] @ VECTORS[0] / np.linalg.norm(VECTORS[:50], axis=1), rtol=1e-5
    )
    assert vectors.ctypes.data % 64 == 0
    assert np.load(file(folder, "numbers.npy")).tolist() == list(range(1, 51))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: file(folder).unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: file(folder).write_bytes(file(folder).read_bytes()[:-100]),
        lambda folder: file(folder).write_bytes(b""),
        lambda folder: flip(file(folder), 3),
        lambda folder: flip(file(folder), 700),  # in a vector
        lambda folder: flip(file(folder, "numbers.npy"), -20),
        lambda folder: flip(file(folder, "moments.npy"), -20),
        lambda folder: flip(folder / MANIFEST, 60),
        lambda folder: shutil.rmtree(file(folder).parent),
        lambda folder: (folder / MANIFEST).write_text("{"),
        lambda folder: (folder / MANIFEST).write_text("[]"),
        lambda folder: (folder / MANIFEST).write_bytes(b"\xff\xfe"),
        lambda folder: (folder / MANIFEST).write_text('{"identity": 1}'),
    ],
)
def test_a_damaged_snapshot_is_not_used(folder, monkeypatch, damage):
    expected = found(folder)
    assert is_used(folder, monkeypatch)
    damage(folder)
    assert not is_used(folder, monkeypatch)
    assert found(folder) == expected
    with Index.open(folder) as index:
        index.save_snapshot()
    assert is_used(folder, monkeypatch)
    assert found(folder) == expected


def test_newer_and_deleted_rows_are_searched_exactly(folder, monkeypatch):
    with Index.open(folder) as index:
        index.add(documents(60)[50:], VECTORS[50:])
        index.delete(["d3", "d51"])
    assert is_used(folder, monkeypatch)
    cosines = VECTORS @ (QUERY / np.linalg.norm(QUERY)) / np.linalg.norm(VECTORS, axis=1)
    expected = [f"d{i}" for i in np.argsort(-cosines) if i not in (3, 51)]
    assert [doc_id for doc_id, _ in found(folder)] == expected


def test_a_snapshot_of_another_index_or_history_is_not_used(folder, tmp_path, monkeypatch):
    expected = found(folder)
    with Index.create(tmp_path / "other", dimension=D) as other:
        other.add(documents(50), -VECTORS[:50])
    shutil.copytree(file(folder).parent, tmp_path / "other" / file(folder).parent.name)
    shutil.copy(folder / MANIFEST, tmp_path / "other")
    assert found(tmp_path / "other") != expected

    shutil.copy(folder / STORE_FILE, tmp_path / "backup")
    with Index.open(folder) as index:
        index.add(documents(55)[50:], VECTORS[50:55])
        index.save_snapshot()
    shutil.copy(tmp_path / "backup", folder / STORE_FILE)
    with Index.open(folder) as index:  # grows past the snapshot's sequence number, with other vectors
        index.add(documents(60)[50:], -VECTORS[50:])
        with_other_past = [hit.doc_id for hit in index.search(QUERY, k=100)]
    cosines = np.concatenate([VECTORS[:50], -VECTORS[50:]]) @ QUERY / np.linalg.norm(VECTORS, axis=1)
    assert with_other_past == [f"d{i}" for i in np.argsort(-cosines)]


def test_refitting_the_map_makes_the_snapshot_stale(tmp_path, make_encoder):
    encoder = make_encoder(corpus_map="standardise")
    folder = tmp_path / "index"
    with Index.create(folder, encoder, max_tokens=32) as index:
        index.add(Document(f"d{i}", f"the number {i * 31}") for i in range(20))
        index.save_snapshot()
        index.add(Document(f"d{i}", f"another sort of text {i}") for i in range(20, 40))
        index.refit_map()

    def scores() -> dict[str, float]:
        with Index.open(folder, encoder) as index:
            return {hit.doc_id: hit.score for hit in index.search("number", k=40, mode="dense")}

    with_stale_snapshot = scores()
    file(folder).unlink()
    assert with_stale_snapshot == pytest.approx(scores(), abs=1e-5)


def test_a_snapshot_that_cannot_be_written_does_not_change_results(folder):
    expected = found(folder)
    for path in (file(folder), folder / MANIFEST, folder / LOCK):
        path.unlink(missing_ok=True)
    for name in (LOCK, MANIFEST):
        (folder / name).mkdir()
    assert found(folder) == expected
    with Index.open(folder) as index:
        index.save_snapshot()
    assert found(folder) == expected


def test_the_manifest_records_the_state(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["sequence"] == 50
    assert len(manifest["map_hash"]) == 64
    assert manifest["folder"] == file(folder).parent.name
    assert manifest["search"]["type"] == "Flat"


def test_searches_use_a_snapshot_that_was_saved(folder):
    """So that what was added before it does not take memory twice."""
    with Index.open(folder) as index:
        index.add(documents(60)[50:], VECTORS[50:])
        index.save_snapshot()
        view = index._current()._view
        assert (view.base.state.sequence, view.newer) == (60, ())


def test_an_older_snapshot_does_not_replace_a_newer_one(folder):
    with Index.open(folder) as index:
        index.search(QUERY)
        old = index._current()._view
        index.add(documents(60)[50:], VECTORS[50:])
        index.save_snapshot()
        new = file(folder)
        index._current()._renew(old)
        assert Snapshot.state_on_disk(folder).sequence == 60
        assert file(folder) == new


def test_a_file_with_the_content_of_another_snapshot_is_not_used(folder, monkeypatch):
    """As when two processes write at once: the manifest of one, the file of the other."""
    old = file(folder).parent
    with Index.open(folder) as index:
        index.delete("d3")
        index.add(documents(51)[50:], VECTORS[50:51])
        expected = [hit.doc_id for hit in index.search(QUERY, k=100)]
        old_manifest = (folder / MANIFEST).read_bytes()
        index.save_snapshot()
    file(folder).parent.rename(old)
    (folder / MANIFEST).write_bytes(old_manifest)
    assert not is_used(folder, monkeypatch)
    assert [doc_id for doc_id, _ in found(folder)] == expected


def test_searches_go_on_while_a_snapshot_is_written(folder, monkeypatch):
    monkeypatch.setattr(view, "MAX_CHANGES", 5)
    monkeypatch.setattr(view, "MAX_CHANGED_SHARE", 0)
    writing, go_on = threading.Event(), threading.Event()
    write = snapshot.atomic_write

    def slow_write(*arguments):
        writing.set()
        assert go_on.wait(30)
        write(*arguments)

    monkeypatch.setattr(snapshot, "atomic_write", slow_write)
    with Index.open(folder) as index:
        index.add(documents(60)[50:], VECTORS[50:])
        assert len(index.search(QUERY, k=100)) == 60
        assert writing.wait(30)
        index.delete("d3")
        assert len(index.search(QUERY, k=100)) == 59
        assert Snapshot.state_on_disk(folder).sequence == 50
        go_on.set()
    assert Snapshot.state_on_disk(folder).sequence == 60  # `close` waits for the snapshot


def test_a_full_disk_leaves_the_older_snapshot(folder, monkeypatch):
    before = file(folder)
    with Index.open(folder) as index:
        index.add(documents(60)[50:], VECTORS[50:])
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            index.save_snapshot()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(folder.glob(".snapshot*"))
    assert file(folder) == before
    assert is_used(folder, monkeypatch)
    assert len(found(folder)) == 60


def test_what_a_killed_process_left_is_removed(folder):
    for left in (".snapshot-0123.4567", "snapshot-0123"):
        (folder / left).mkdir()
        (folder / left / "vectors.npy").write_bytes(b"half a snapshot, or one whose manifest was not written")
    with Index.open(folder) as index:
        index.add(documents(60)[50:], VECTORS[50:])
        index.save_snapshot()
    assert not list(folder.glob(".snapshot*"))
    assert file(folder).parent.name == json.loads((folder / MANIFEST).read_text())["folder"]


def peak_increase(action) -> int:
    """By how many bytes the process's memory rises at most while `action` runs."""
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM

    def status(name: str) -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    before = status("VmRSS")
    action()
    return status("VmHWM") - before


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="measures memory with Linux's /proc")
def test_a_snapshot_takes_the_memory_of_its_vectors_once(tmp_path):
    n, dimension = 60_000, 256
    vectors = np.ones((n, dimension), dtype=np.float32)
    blocks = tuple(Block(np.arange(i, i + 20_000), vectors[i : i + 20_000]) for i in range(0, n, 20_000))
    state = State("identity", "map", n)
    empty = Snapshot.of(0, dimension, (), State("identity", "map", 0))
    before = View(empty, blocks, np.arange(100), state, CorpusMap())
    merged = []
    assert peak_increase(lambda: merged.append(before.merged())) < 1.5 * vectors.nbytes
    base = merged[0].base
    assert len(base.block) == n - 100
    args = (tmp_path, len(base.block), dimension, before.live_rows(), state, Wanted())
    assert peak_increase(lambda: Snapshot.write(*args)) < 0.8 * vectors.nbytes
    loaded = []
    assert peak_increase(lambda: loaded.append(Snapshot.load(tmp_path, state, 0))) < 0.6 * vectors.nbytes
    np.testing.assert_array_equal(loaded[0].block.numbers, base.block.numbers)


def test_adding_one_passage_at_a_time_copies_few_vectors(monkeypatch):
    monkeypatch.setattr(view, "SMALL_BLOCK", 4)
    blocks: tuple[Block, ...] = ()
    n, n_copied, most_blocks = 2000, 0, 0
    for i in range(n):
        before = blocks
        blocks = view._appended(blocks, Block(np.array([i]), np.full((1, 2), i, dtype=np.float32)))
        n_copied += sum(len(block) for block in blocks if all(block is not known for known in before))
        most_blocks = max(most_blocks, len(blocks))
    assert n_copied < n * 2 * np.log2(n)
    assert most_blocks < 2 * np.log2(n)
    whole = Block.joined(blocks)
    assert whole.numbers.tolist() == whole.vectors[:, 0].tolist() == list(range(n))


def test_large_blocks_are_not_copied_when_passages_are_added(monkeypatch):
    monkeypatch.setattr(view, "SMALL_BLOCK", 4)
    monkeypatch.setattr(view, "LARGE_BLOCK", 32)
    blocks: tuple[Block, ...] = ()
    for i in range(200):
        large = [block for block in blocks if len(block) >= 32]
        blocks = view._appended(blocks, Block(np.array([i]), np.full((1, 2), i, dtype=np.float32)))
        assert all(known is block for known, block in zip(large, blocks, strict=False))
        assert all(len(block) < 64 for block in blocks)
    assert Block.joined(blocks).numbers.tolist() == list(range(200))


def test_forgotten_deletions_do_not_bring_passages_back(folder, monkeypatch):
    monkeypatch.setattr(live, "MIN_FORGOTTEN", 3)
    with Index.open(folder) as stale, Index.open(folder) as index:
        stale.search(QUERY)  # its view is older than the deletions that are forgotten
        shutil.copytree(folder, folder.with_name("stale"))
        for i in range(20):
            index.delete(f"d{i}")
            index.save_snapshot()
        index.add(documents(60)[50:], VECTORS[50:])
        with index._current().store.read() as tx:
            (n_records,) = tx.execute("SELECT count(*) FROM tombstones").fetchone()
        assert n_records < 3
        expected = [(hit.doc_id, hit.score) for hit in index.search(QUERY, k=100)]
        assert [doc_id for doc_id, _ in expected if int(doc_id[1:]) < 20] == []
        assert [(hit.doc_id, hit.score) for hit in stale.search(QUERY, k=100)] == expected
    shutil.rmtree(file(folder).parent)
    stale_snapshot = file(folder.with_name("stale")).parent  # nor does a snapshot that is older than them
    shutil.copytree(stale_snapshot, folder / stale_snapshot.name)
    shutil.copy(folder.with_name("stale") / MANIFEST, folder)
    assert [doc_id for doc_id, _ in found(folder)] == [doc_id for doc_id, _ in expected]


def test_a_snapshot_that_is_newer_than_the_transaction_is_not_used(folder):
    """As when another process commits and saves between the begin of a search and the reading of the snapshot."""
    with Index.open(folder) as index, closing(Store(folder)) as store, store.read() as tx:
        index.add(documents(60)[50:], VECTORS[50:])
        index.delete("d3")
        index.save_snapshot()
        (found, _) = view.catch_up(None, store, tx).search(VECTORS[:1], 100)[0]
    assert sorted(found.tolist()) == list(range(1, 51))


def test_a_view_finds_the_same_on_a_snapshot_of_an_earlier_state(folder):
    """As when documents are added and deleted while the snapshot is made."""
    with Index.open(folder) as index:
        index.add(documents(54)[50:], VECTORS[50:54])
        index.delete(["d1", "d51"])
        index.search(QUERY)
        base = index._current()._view.merged().base
        index.add(documents(60)[54:], VECTORS[54:])
        index.search(QUERY)
        index.delete(["d2", "d52", "d57"])
        index.search(QUERY)
        before = index._current()._view
        after = before.rebased(base)
        assert len(after) == len(before) == 55
        assert after.deleted.tolist() == [3, 53, 60]
        (found, scores), (expected, expected_scores) = (
            v.search(VECTORS[:1], 100)[0] for v in (after, before)
        )
        np.testing.assert_array_equal(found, expected)
        np.testing.assert_allclose(scores, expected_scores, atol=1e-6)


def test_a_snapshot_of_another_process_may_have_passages_that_were_never_seen_here(folder, monkeypatch):
    """They were added and deleted between two searches, and stand in the snapshot that was saved between them."""
    monkeypatch.setattr(view, "MAX_CHANGES", 2)
    monkeypatch.setattr(view, "MAX_CHANGED_SHARE", 0)
    with Index.open(folder) as here, Index.open(folder) as elsewhere:
        here.search(QUERY)
        elsewhere.add(documents(54)[50:], VECTORS[50:54])
        elsewhere.save_snapshot()
        elsewhere.delete("d50")
        for _ in range(2):  # the first takes the snapshot over
            ids = [hit.doc_id for hit in here.search(QUERY, k=100)]
            assert ids == [doc_id for doc_id, _ in found(folder)]
            assert len(ids) == 53
            here._current()._wait()
        assert here._current()._view.base.state.sequence > 50


def test_vectors_that_were_damaged_while_open_are_not_copied_into_a_new_snapshot(folder):
    with Index.open(folder) as index:
        index.search(QUERY)
        path = file(folder)
        with path.open("r+b") as damaged:  # in place, as the mapping sees it
            damaged.seek(path.stat().st_size - 4 * D * 20)
            damaged.write(bytes(4 * D * 20))
        index.add(documents(51)[50:], VECTORS[50])
        index.save_snapshot()
        assert len(index.search(QUERY, k=100)) == 51
    expected = VECTORS[:51] @ QUERY / np.linalg.norm(VECTORS[:51], axis=1) / np.linalg.norm(QUERY)
    np.testing.assert_allclose([score for _, score in found(folder)], sorted(expected)[::-1], atol=1e-4)
    assert Snapshot.is_whole(folder)


def test_a_snapshot_that_faiss_cannot_read_is_made_again(folder, monkeypatch):
    def refuse(*_: object) -> None:
        raise RuntimeError("of another version")

    before = found(folder)
    with Index.open(folder) as index:
        index.set_faiss("SQ8")
        index.save_snapshot()
    with monkeypatch.context() as patch:
        patch.setattr(snapshot.Ann, "read", refuse)
        assert found(folder) == before


def test_a_manifest_of_an_older_format_is_no_damage(folder):
    content = json.loads((folder / MANIFEST).read_text())
    del content["format"], content["sha256"]
    (folder / MANIFEST).write_text(json.dumps(content))
    assert Snapshot.is_whole(folder)
    (folder / MANIFEST).write_text(json.dumps(content)[:-9])
    assert not Snapshot.is_whole(folder)

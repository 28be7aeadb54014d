"""The snapshot is a cache: missing, damaged or stale, it does not change search results."""

import json
import shutil

import faiss
import numpy as np
import pytest

from index.dense import snapshot
from index.dense.snapshot import FILE, MANIFEST
from index.index import Index
from index.reading.document import Document
from index.store.store import FILE as STORE_FILE

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


def is_used(folder, monkeypatch) -> bool:
    """Whether opening and searching reads the snapshot instead of the store's vectors."""
    used = []
    read = faiss.read_index
    monkeypatch.setattr(snapshot.faiss, "read_index", lambda *a: used.append(a) or read(*a))
    found(folder)
    monkeypatch.undo()
    return bool(used)


def test_the_snapshot_opens_in_faiss_with_passage_numbers_as_ids(folder):
    index = faiss.read_index(str(folder / FILE))
    assert (index.ntotal, index.d) == (50, D)
    assert faiss.vector_to_array(index.id_map).tolist() == list(range(1, 51))


def flip(path, place):
    data = bytearray(path.read_bytes())
    data[place] ^= 0x10
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / FILE).unlink(),
        lambda folder: (folder / MANIFEST).unlink(),
        lambda folder: (folder / FILE).write_bytes((folder / FILE).read_bytes()[:-100]),
        lambda folder: (folder / FILE).write_bytes(b""),
        lambda folder: flip(folder / FILE, 3),
        lambda folder: flip(folder / FILE, 700),  # in a vector: FAISS loads it without an error
        lambda folder: flip(folder / FILE, -20),  # in an id
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
    for name in (FILE, MANIFEST):
        shutil.copy(folder / name, tmp_path / "other" / name)
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


def test_refitting_the_map_makes_the_snapshot_stale(tmp_path, make_encoder, monkeypatch):
    encoder = make_encoder(corpus_map="standardise")
    folder = tmp_path / "index"
    with Index.create(folder, encoder, max_tokens=32) as index:
        index.add(Document(f"d{i}", f"the number {i * 31}") for i in range(20))
        index.save_snapshot()
        index.add(Document(f"d{i}", f"another sort of text {i}") for i in range(20, 40))
        index.refit_map()
        expected = index.search("number", k=40)
    with Index.open(folder, encoder) as index:
        assert [hit.doc_id for hit in index.search("number", k=40)] == [hit.doc_id for hit in expected]


def test_a_snapshot_that_cannot_be_written_does_not_change_results(folder):
    expected = found(folder)
    for name in (FILE, MANIFEST):
        (folder / name).unlink()
        (folder / name).mkdir()
    assert found(folder) == expected
    with Index.open(folder) as index:
        index.save_snapshot()
    assert found(folder) == expected


def test_the_manifest_records_sequence_and_hashes(folder):
    manifest = json.loads((folder / MANIFEST).read_text())
    assert manifest["sequence"] == 50
    assert len(manifest["sha256"]) == len(manifest["map_hash"]) == 64

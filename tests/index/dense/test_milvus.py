"""Search in a copy of the vectors in Milvus: the same results as with the vectors in the index's folder."""

import os
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from gpt_core.common.errors import InputError
from index.build_index import build_index
from index.building.options import BuildOptions
from index.dense import live_milvus
from index.dense.milvus import Address, MilvusCopy
from index.index import Index
from index.manage_index import snapshot
from index.reading.document import Document

pytest.importorskip("milvus_lite")
N, DIMENSION = 400, 16
RNG = np.random.default_rng(0)
VECTORS = RNG.standard_normal((N, DIMENSION)).astype(np.float32)
CHANGED = RNG.standard_normal((50, DIMENSION)).astype(np.float32)
QUERIES = RNG.standard_normal((4, DIMENSION)).astype(np.float32)


def documents(start: int, stop: int, word: str = "text") -> list[Document]:
    return [Document(f"d{i}", f"{word} {i}", metadata={"part": i % 3}) for i in range(start, stop)]


@pytest.fixture
def folder(tmp_path) -> Path:
    with Index.create(tmp_path / "index", dimension=DIMENSION) as index:
        index.add(documents(0, N), VECTORS)
    return tmp_path / "index"


@pytest.fixture
def address(tmp_path) -> str:
    return f"milvus://{tmp_path}/copy.db"


def found(index: Index, **options) -> list:
    return [
        [(hit.doc_id, pytest.approx(hit.score, abs=1e-5)) for hit in hits]
        for hits in index.search(QUERIES, 10, "dense", **options)
    ]


def both(folder: Path, address: str, **options) -> tuple[list, list]:
    """What the index finds in its own vectors and in Milvus."""
    results = []
    for store in ("faiss", address):
        with Index.open(folder) as index:
            index.set_store(store)
            results.append(found(index, **options))
    return results[0], results[1]


def same(folder: Path, address: str, **options) -> bool:
    own, copied = both(folder, address, **options)
    return own == copied and all(len(hits) == 10 for hits in own)


def copied_numbers(address: str) -> set[int]:
    copy = MilvusCopy(Address.parse(address))
    try:
        rows = copy._client.query("zhizhi", filter="number >= 0", output_fields=["number"], limit=10_000)
        return {row["number"] for row in rows}
    finally:
        copy.close()


def stored_numbers(folder: Path) -> set[int]:
    with sqlite3.connect(folder / "index.sqlite") as tx:
        return {number for (number,) in tx.execute("SELECT number FROM vectors")}


def test_the_same_top_10_at_first_and_after_additions_updates_and_deletions(folder, address, monkeypatch):
    rebuilt = []
    rebuild = MilvusCopy.rebuild
    monkeypatch.setattr(
        MilvusCopy, "rebuild", lambda self, *args: (rebuilt.append(1), rebuild(self, *args))[1]
    )
    assert same(folder, address)
    assert copied_numbers(address) == stored_numbers(folder)
    with Index.open(folder) as index:  # the address is kept
        assert index.stats()["store"] == address
        assert index.stats()["vectors"] == {"type": "Milvus"}
        nearest = [hits[0].doc_id for hits in index.search(QUERIES, 1)]
        index.delete(nearest)
        assert not {hit[0] for hits in found(index) for hit in hits} & set(nearest)
        index.add(Document("new", "new"), QUERIES[:1])
        assert index.search(QUERIES[0], 1)[0].doc_id == "new"
        index.upsert(documents(10, 60, "other"), CHANGED)
    assert same(folder, address)
    assert copied_numbers(address) == stored_numbers(folder)
    assert len(rebuilt) == 1


@pytest.mark.parametrize("most", [10_000, 20])  # the store's vectors are read, or Milvus gets the ids
def test_a_filter_finds_as_many_as_there_are(folder, address, monkeypatch, most):
    monkeypatch.setattr(live_milvus, "EXACT_AMONG", most)
    assert same(folder, address, filter={"part": 1})
    assert same(folder, address, filter={"doc_id": [f"d{i}" for i in range(5, 30)]})
    with Index.open(folder) as index:
        assert len(index.search(QUERIES[0], 10**6, filter={"part": 2})) == len(range(2, N, 3))
        assert len(index.search(QUERIES[0], N)) == N
        assert index.search(QUERIES[0], 5, filter={"part": 1}).exact == (most == 10_000)
        assert not index.search(QUERIES[0], 5).exact


def test_hybrid_search_is_the_same_after_the_corpus_map_changed(make_encoder, tmp_path, address):
    encoder = make_encoder(corpus_map="standardise")
    with Index.create(tmp_path / "index", encoder, max_tokens=64) as index:
        texts = [Document(f"d{i}", f"note {i} about {i * i}", metadata={"part": i % 2}) for i in range(150)]
        index.add(texts[:60])
        results = []
        for documents_now in ([], texts[60:]):  # the second doubles the corpus, which fits the map again
            index.add(documents_now)
            index.set_store("faiss")
            own = [
                index.search("note about 49", 10, mode, filter)
                for mode in ("hybrid", "dense")
                for filter in (None, {"part": 1})
            ]
            index.set_store(address)
            for hits in (own, [
                index.search("note about 49", 10, mode, filter)
                for mode in ("hybrid", "dense")
                for filter in (None, {"part": 1})
            ]):  # fmt: skip
                results.append([[(hit.doc_id, round(hit.score, 4)) for hit in some] for some in hits])
        assert results[0] == results[1]
        assert results[2] == results[3]
        assert results[0] != results[2]


def test_k_hits_are_found_although_the_copy_has_others_and_lacks_most(folder, address):
    own, _ = both(folder, address)
    copy = MilvusCopy(Address.parse(address))
    copy._client.upsert("zhizhi", [{"number": 10**6 + i, "vector": 9 * QUERIES[0]} for i in range(40)])
    copy._client.delete("zhizhi", filter="number > 5 and number < 900000")
    with Index.open(folder) as index:
        assert found(index) == own
    copy.close()


def test_what_a_killed_process_did_not_copy_is_copied_at_the_next_search(folder, address, monkeypatch):
    with Index.open(folder) as index:
        index.set_store(address)
        index.save_snapshot()
    update = MilvusCopy.update

    def killed(self, state, added, deleted):
        update(self, self.state(), added, deleted[:20])  # a part, and the state is as before
        raise KeyboardInterrupt

    with Index.open(folder) as index:
        index.delete([f"d{i}" for i in range(50)])
        index.add([Document("new", "new")], QUERIES[:1])
        monkeypatch.setattr(MilvusCopy, "update", killed)
        with pytest.raises(KeyboardInterrupt):
            index.save_snapshot()
        monkeypatch.undo()
    assert same(folder, address)
    assert copied_numbers(address) == stored_numbers(folder)


def test_a_copy_of_another_index_or_a_later_state_is_made_anew(folder, address, tmp_path):
    shutil.copytree(folder, tmp_path / "earlier")
    with Index.open(folder) as index:
        index.set_store(address)
        index.add([Document("new", "new")], QUERIES[:1])
        assert index.search(QUERIES[0], 1)[0].doc_id == "new"
    with Index.open(tmp_path / "earlier") as index:  # as if a backup had been put in its place
        index.set_store(address)
        index.add([Document("later", "later")], QUERIES[1:2])
        assert index.search(QUERIES[1], 1)[0].doc_id == "later"
        assert index.search(QUERIES[0], 1)[0].doc_id != "new"
    assert copied_numbers(address) == stored_numbers(tmp_path / "earlier")
    with Index.create(tmp_path / "other", dimension=DIMENSION) as index:
        index.add(documents(0, 20), VECTORS[:20])
        index.set_store(address)
        assert len(index.search(QUERIES[0], 100)) == 20
    assert copied_numbers(address) == stored_numbers(tmp_path / "other")


def test_deletions_that_the_copy_has_are_forgotten_and_an_older_copy_is_made_anew(folder, address):
    with Index.open(folder) as index:
        index.set_store(address)
        index.save_snapshot()
        index.set_store("faiss")
        index.delete([f"d{i}" for i in range(50)])
        index.vacuum()  # forgets the deletions, which the copy has not
        index.set_store(address)
        index.save_snapshot()
        assert copied_numbers(address) == stored_numbers(folder)
        index.delete([f"d{i}" for i in range(50, 80)])
        index.vacuum()
    with sqlite3.connect(folder / "index.sqlite") as tx:
        assert tx.execute("SELECT count(*) FROM tombstones").fetchone()[0] == 0
    assert same(folder, address)


def test_a_backup_has_no_part_in_the_copy(folder, address, tmp_path):
    with Index.open(folder) as index:
        index.set_store(address)
        index._current().store.backup(tmp_path / "backup")
    with Index.open(tmp_path / "backup") as index:
        assert index.stats()["store"] == "faiss"


@pytest.mark.parametrize(
    ("store", "message"),
    [
        ("milvus", "store is 'milvus'; expected faiss, milvus://HOST:PORT/COLLECTION"),
        ("milvus://127.0.0.1:1/a-b", "a collection of letters, digits"),
        ("milvus://127.0.0.1:1/notes", "notes cannot be used .* Start the Milvus server, or choose"),
        ("milvus:///nowhere/copy.db", "cannot be used"),
    ],
)
def test_a_store_that_cannot_be_used_is_reported_and_not_kept(folder, store, message):
    with Index.open(folder) as index:
        with pytest.raises(InputError, match=message):
            index.set_store(store)
        assert index.stats()["store"] == "faiss"
        assert len(index.search(QUERIES[0], 3)) == 3


def test_without_its_server_an_index_still_opens_writes_and_leaves_milvus(folder):
    with sqlite3.connect(folder / "index.sqlite") as tx:
        tx.execute("INSERT INTO meta VALUES ('milvus', 'milvus://127.0.0.1:1/notes')")
    with Index.open(folder) as index:
        index.add([Document("new", "new words")], QUERIES[:1])
        assert index.search("words", 1, "lexical")[0].doc_id == "new"
        with pytest.raises(InputError, match="notes cannot be used"):
            index.search(QUERIES[0], 1)
        index.set_store("faiss")
        assert index.search(QUERIES[0], 1)[0].doc_id == "new"


def test_a_build_with_store_copies_and_later_commands_use_the_copy(tmp_path, embedder, address, capsys):
    (tmp_path / "notes.txt").write_text("Walruses live in the north.")
    options = {"index": str(tmp_path / "index"), "input": (str(tmp_path / "notes.txt"),)}
    build_index(BuildOptions(**options, embedder=str(embedder), max_tokens=64, store=address))
    assert "searched with Milvus" in capsys.readouterr().out
    assert copied_numbers(address) == stored_numbers(tmp_path / "index") != set()
    (tmp_path / "notes.txt").write_text("Walruses live on ice.")
    build_index(BuildOptions(**options))  # the index keeps its store
    assert copied_numbers(address) == stored_numbers(tmp_path / "index")
    snapshot(index=str(tmp_path / "index"), store="faiss")
    assert "searched exactly" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.network
def test_a_real_server_finds_the_same(folder, tmp_path, monkeypatch):
    server = tmp_path / "server"
    subprocess.run([sys.executable, "-m", "venv", server], check=True)
    # setuptools: the package imports pkg_resources
    install = [server / "bin" / "pip", "install", "-q", "milvus==2.3.5", "setuptools<81"]
    if subprocess.run(install).returncode:
        pytest.skip("the package milvus==2.3.5 cannot be installed here")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    address = f"milvus://127.0.0.1:{port}/notes"
    command = [server / "bin" / "milvus-server", "--data", tmp_path / "data", "--proxy-port", str(port)]
    with (
        open(tmp_path / "log", "w") as log,
        subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True) as process,
    ):
        try:
            wait_for(address)
            assert same(folder, address)
            with Index.open(folder) as index:
                index.delete([f"d{i}" for i in range(100)])
                index.upsert(documents(150, 200, "other"), CHANGED)
                assert index.search(CHANGED[7], 1)[0].doc_id == "d157"
            assert same(folder, address)
            monkeypatch.setattr(live_milvus, "EXACT_AMONG", 20)  # Milvus gets the ids
            assert same(folder, address, filter={"part": 1})
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def wait_for(address: str) -> None:
    end = time.monotonic() + 120
    while True:
        try:
            return MilvusCopy(Address.parse(address)).close()
        except InputError:
            if time.monotonic() > end:
                raise
            time.sleep(1)

"""An index that is deleted, overwritten or made anew while it is open elsewhere."""

import shutil
import sqlite3
import threading

import numpy as np
import pytest

from gpt_core.common.errors import InputError
from index.index import Index
from index.reading.document import Document
from index.store.connections import ReplacedError
from index.store.store import FILE

E0, E1, E2 = np.eye(3, dtype=np.float32)


def make(folder, vectors: dict[str, np.ndarray], dimension: int = 3) -> None:
    with Index.create(folder, dimension=dimension) as index:
        for doc_id, vector in vectors.items():
            index.add(Document(doc_id, doc_id), vector)


def found(index: Index, vector) -> list[tuple[str, float]]:
    """Ids and scores; those of equal scores in any order."""
    return sorted(((hit.doc_id, round(hit.score, 5)) for hit in index.search(vector)), key=lambda hit: hit[0])


@pytest.fixture
def opened(tmp_path):
    make(tmp_path / "index", {"old": E0})
    with Index.open(tmp_path / "index") as index:
        assert found(index, E0) == [("old", 1)]
        yield index


def test_an_open_index_searches_the_one_that_was_made_anew(opened):
    shutil.rmtree(opened.folder)
    make(opened.folder, {"new0": E1, "new1": E2})
    assert found(opened, E1) == [("new0", 1), ("new1", 0)]
    assert found(opened, E0) == [("new0", 0), ("new1", 0)]
    assert opened.document_ids() == ["new0", "new1"]
    assert opened.get("old") is None


def test_no_thread_finds_documents_of_both_indexes(opened):
    shutil.rmtree(opened.folder)
    make(opened.folder, {f"new{i}": E1 for i in range(3)})
    start, results = threading.Barrier(4), []

    def search() -> None:
        start.wait()
        results.extend(found(opened, E1) for _ in range(5))

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [[("new0", 1), ("new1", 1), ("new2", 1)]] * 20


def test_an_index_that_was_overwritten_in_place_is_noticed(opened, tmp_path):
    """It keeps its inode, as a new file may have that of a deleted one: the transaction sees the other identity."""
    make(tmp_path / "other", {"new": E1})
    with pytest.raises(ZeroDivisionError), opened._current().store.read():
        raise ZeroDivisionError  # after an error the connection, the only one, is closed
    shutil.copy(tmp_path / "other" / FILE, opened.folder / FILE)
    with (
        pytest.raises(ReplacedError, match="was deleted, replaced by another"),
        opened._current().store.read(),
    ):
        pass
    assert found(opened, E1) == [("new", 1)]


def test_a_deleted_index_is_an_error_that_says_so(opened):
    shutil.rmtree(opened.folder)
    for use in (lambda: opened.search(E0), lambda: opened.upsert(Document("x", "x"), E0), opened.stats):
        with pytest.raises(InputError, match="has no index"):
            use()
    assert not opened.folder.exists()


def test_writes_follow_the_settings_of_the_new_index(opened):
    shutil.rmtree(opened.folder)
    make(opened.folder, {}, dimension=2)
    with pytest.raises(InputError, match=r"vectors have the shape \(3,\); expected \(2,\)"):
        opened.upsert(Document("x", "x"), E0)
    opened.upsert(Document("x", "x"), [0, 1])
    with Index.open(opened.folder) as index:
        assert found(index, [0, 1]) == [("x", 1)]


def test_a_write_that_began_in_the_old_index_does_not_go_on_in_the_new_one(tmp_path, encoder):
    folder = tmp_path / "index"

    def documents():
        yield Document("first", "first")
        shutil.rmtree(folder)
        with Index.create(folder, encoder, max_tokens=32) as new:
            new.add(Document("new", "new"))
        yield Document("second", "second")

    with Index.create(folder, encoder, max_tokens=32) as index:
        with pytest.raises(InputError, match="was deleted, replaced by another"):
            index.add(documents())
        assert index.document_ids() == ["new"]


def test_another_embedder_of_the_new_index_is_an_error_that_names_both(tmp_path, make_encoder):
    folder = tmp_path / "index"
    first, second = make_encoder(name="first"), make_encoder(seed=1, name="second")
    Index.create(folder, first, max_tokens=32).close()
    with Index.open(folder, first) as index:
        shutil.rmtree(folder)
        with Index.create(folder, second, max_tokens=32) as other:
            other.add(Document("a", "text"))
        for _ in range(2):
            with pytest.raises(InputError, match=r"was built with second \(\w+\), not with first \(\w+\)"):
                index.search("text")
        shutil.rmtree(folder)
        with Index.create(folder, first, max_tokens=32) as other:
            other.add(Document("b", "text"))
        assert [hit.doc_id for hit in index.search("text")] == ["b"]


def test_closing_the_old_index_leaves_the_new_ones_files_alone(tmp_path):
    """SQLite deletes its -wal file by path when the last connection is closed."""
    folder = tmp_path / "index"
    make(folder, {"old": E0})
    old = Index.open(folder)
    old.upsert(Document("old", "changed"), E0)
    shutil.rmtree(folder)
    with Index.create(folder, dimension=3) as new:
        new.add(Document("new", "new"), E1)
        old.close()
        new.add(Document("newer", "newer"), E2)
        shutil.copytree(folder, tmp_path / "copy")  # with the -wal file that holds the last commits
    with Index.open(tmp_path / "copy") as copy:
        assert copy.document_ids() == ["new", "newer"]
    with sqlite3.connect(folder / FILE) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    connection.close()

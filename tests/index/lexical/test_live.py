"""Postings give the scores of FTS5, whatever is added, deleted and repaired, and whatever happens to their file."""

import random
import sqlite3
import threading

import numpy as np
import pytest

from embed.text.analysis import query_terms
from index.index import Index
from index.lexical import live, postings
from index.lexical.cache import NAME, Cache, State
from index.lexical.live import LiveWords
from index.lexical.matches import match_expression
from index.reading.document import Document
from index.store.store import FILE
from index.store.words import lexical_scores, rewrite_words

WORDS = [
    "whale",
    "whales",
    "sing",
    "Python",
    "3.8",
    "node.js",
    "CamelCase",
    "大学",
    "北京大学",
    "the",
    "of",
    "and",
    "C++",
]
QUERIES = [
    "whale", "whales sing sing", "Python 3.8", "node.js", "CamelCase sing", "大学", "学", "北", "the of", "and",
    "whale nowhere", "nowhere", "C++ 3", "the whale", "3 8",
]  # fmt: skip


@pytest.fixture(autouse=True)
def small(monkeypatch):
    monkeypatch.setattr(live, "MIN_PASSAGES", 10)
    monkeypatch.setattr(live, "MAX_PARTS", 3)
    monkeypatch.setattr(postings, "BLOCK", 50)


@pytest.fixture
def index(tmp_path):
    with Index.create(tmp_path / "index", dimension=2) as index:
        add(index, range(60))
        index.save_snapshot()
        yield index


def add(index, numbers):
    rng = random.Random(min(numbers))
    texts = [
        " ".join(rng.choices(WORDS, weights=range(len(WORDS), 0, -1), k=rng.randrange(1, 30)))
        for _ in numbers
    ]
    documents = [Document(str(n), text, f"title {n}") for n, text in zip(numbers, texts, strict=True)]
    index.upsert(documents, np.ones((len(documents), 2)))


def check(index, words=None):
    """The postings' matches and scores are FTS5's, for every query."""
    words = words or index._words
    with index._view.store.read() as tx:
        current = words.current(tx)
        assert current is not None
        for text in QUERIES:
            query = query_terms(text)
            for table in ("lexical", "lexical_stop_words"):
                numbers, scores = lexical_scores(tx, table, match_expression(query.phrases))
                found, ours = current.tables[table].scores(tx, query.phrases)
                assert found.tolist() == numbers.tolist(), (text, table)
                np.testing.assert_allclose(ours, scores, rtol=1e-12)
    return current


def test_scores_are_those_of_fts5_after_additions_and_deletions(index):
    base = check(index).base
    rng = random.Random(1)
    for step in range(12):
        first = 100 + 10 * step
        add(index, range(first, first + rng.randrange(1, 5)))  # new ones
        add(index, rng.sample(range(60), 2))  # changed or new again
        index.delete([str(n) for n in rng.sample(range(60), 2)] + [str(first)])
        current = check(index)
        assert current.base is base
        assert len(current.newer) <= 3
    assert index.search("whale", 100, "lexical") == by_fts5(index, "whale")


def by_fts5(index, text):
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LiveWords, "current", lambda self, tx: None)
        return index.search(text, 100, "lexical")


def test_an_opened_index_uses_the_file_and_makes_it_anew_when_it_is_damaged(index):
    folder, store = index.folder, index._view.store
    data = (folder / NAME).read_bytes()
    with store.read() as tx:
        state = State.of(store, tx)
    assert Cache.load(folder, state, 0) is not None
    rng = random.Random(0)
    for _ in range(30):
        bad = bytearray(data)
        bad[rng.randrange(len(bad))] ^= 1 << rng.randrange(8)
        (folder / NAME).write_bytes(bad)
        assert Cache.load(folder, state, 0) is None
    for size in (0, 5, 100, len(data) // 2, len(data) - 1):
        (folder / NAME).write_bytes(data[:size])
        assert Cache.load(folder, state, 0) is None
    opened = LiveWords(store)
    with store.read() as tx:
        assert opened.current(tx) is None  # FTS5 answers meanwhile
    opened.wait()
    check(index, opened)
    assert Cache.load(folder, state, 0) is not None
    again = LiveWords(store)
    check(index, again)
    assert again._background is None


def test_a_cache_that_is_newer_than_a_restored_store_is_not_used(index):
    backup = index.folder.parent / "backup"
    index._view.store.backup(backup)
    add(index, range(500, 540))
    index.save_snapshot()
    newer = (index.folder / NAME).read_bytes()
    (backup / NAME).write_bytes(newer)
    with Index.open(backup) as restored:
        assert not (backup / NAME).exists()
        add(restored, range(700, 760))
        assert restored.search("whale", 100, "lexical") == by_fts5(restored, "whale")


def test_a_full_text_that_is_written_anew_has_new_postings(index):
    before = check(index)
    with sqlite3.connect(index.folder / FILE) as connection:
        connection.execute("INSERT INTO lexical (lexical, rowid, terms) VALUES ('delete', 1, 'sing')")
        rewrite_words(connection)
    connection.close()
    with index._view.store.read() as tx:
        assert index._words.current(tx) is None
    index._words.wait()
    assert check(index).base is not before.base


def test_forgotten_deletions_and_many_additions_are_left_to_fts5_until_the_cache_is_new(index, monkeypatch):
    other = LiveWords(index._view.store)
    check(index, other)
    index.delete(["1", "2"])
    index.vacuum()
    with index._view.store.read() as tx:
        assert other.current(tx) is None
    other.wait()
    check(index, other)
    monkeypatch.setattr(live, "MAX_NEW", 3)
    add(index, range(200, 204))
    with index._view.store.read() as tx:
        assert index._words.current(tx) is None
    index._words.wait()
    check(index)


def test_an_outdated_cache_is_made_anew_in_the_background(index, monkeypatch):
    monkeypatch.setattr(live, "MAX_CHANGES", 4)
    base = check(index).base
    add(index, range(200, 208))
    check(index)
    index._words.wait()
    current = check(index)
    assert current.base is not base
    assert not current.newer


def test_a_search_that_began_before_others_sees_its_own_state(index):
    store = index._view.store
    with store.read() as old:
        n = len(lexical_scores(old, "lexical", '"sing"')[0])
        add(index, range(300, 330))
        check(index)
        found = index._words.current(old)
        assert found is not None
        assert len(found.tables["lexical"].scores(old, query_terms("sing").phrases)[0]) == n
        check(index)


def test_threads_search_and_write_at_once(index, monkeypatch):
    monkeypatch.setattr(live, "MAX_CHANGES", 5)
    wrong, stop = [], threading.Event()

    def search():
        try:
            while not stop.is_set():
                check(index) if index._words._recent else None
        except AssertionError as error:
            if "None" not in str(error):
                wrong.append(error)

    threads = [threading.Thread(target=search) for _ in range(2)]
    for thread in threads:
        thread.start()
    for step in range(10):
        add(index, range(400 + step, 404 + step))
        index.delete(str(step))
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_a_small_index_has_no_postings(tmp_path, monkeypatch):
    monkeypatch.setattr(live, "MIN_PASSAGES", 61)
    with Index.create(tmp_path / "small", dimension=2) as index:
        add(index, range(60))
        index.save_snapshot()
        assert index.search("whale", 5, "lexical")
        assert not (index.folder / NAME).exists()

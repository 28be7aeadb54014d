"""A store of an older format is brought to this one, with the same documents, hits and checks."""

import sqlite3
from contextlib import closing

import pytest

from index.index import Index
from index.reading.document import Document
from index.store import migrate
from index.store.check import find_problems
from index.store.fields import stored_rows
from index.store.store import FILE, Store
from index.store.words import lexical_terms
from tests.index.store.older_format import to_format

DOCUMENTS = [
    Document("long", "  Whales sing. " * 60 + "\n\n", "A title", {"year": 2020, "tags": ["a", "b"]}),
    Document("zh", "知之为知之，不知为不知🙂，是知也。" * 20, metadata={"author": {"name": "Kong"}}),
    Document("nul", "before \0 behind, and \0 again. " * 20),
    Document("title only", " \n ", "Only a title"),
    Document("nothing", "   "),
]


@pytest.fixture
def folder(tmp_path, encoder):
    with Index.create(
        tmp_path / "index", encoder, max_tokens=32, overlap=8, passages_per_document=6
    ) as index:
        index.add(DOCUMENTS)
        index.add(Document("gone", "Whales again. " * 30))
        index.delete("gone")
    return tmp_path / "index"


def state(folder, encoder):
    with Index.open(folder, encoder) as index:
        hits = [
            index.search(query, 50, mode)
            for query in ("whales sing", "知之", "behind")
            for mode in ("hybrid", "lexical")
        ]
        documents = [index.get(document.id) for document in DOCUMENTS]
    with closing(Store(folder)) as store:
        assert list(find_problems(store)) == []
        with store.read() as tx:
            return documents, hits, sorted(stored_rows(tx))


def test_passages_are_made_of_the_one_text_of_their_document(folder, encoder):
    documents, hits, _ = state(folder, encoder)
    assert documents == DOCUMENTS
    texts = {document.id: document.text for document in DOCUMENTS}
    found = [hit for some in hits for hit in some]
    assert all(hit.text == texts[hit.doc_id][hit.start : hit.end] for hit in found)
    assert any("\0" in hit.text for hit in found)
    with sqlite3.connect(folder / FILE) as connection:
        stored = connection.execute("SELECT text FROM passages").fetchall()
        stored += connection.execute(
            "SELECT lead FROM documents UNION ALL SELECT rest FROM documents"
        ).fetchall()
    connection.close()
    assert sum(len(text) for (text,) in stored) == sum(map(len, texts.values()))


@pytest.mark.parametrize("version", [2, 3])
def test_a_store_of_an_older_format_has_the_same_contents_afterwards(folder, encoder, version):
    before = state(folder, encoder)
    to_format(folder, version)
    assert state(folder, encoder) == before
    with Index.open(folder, encoder) as index:
        index.upsert(Document("long", "Quite another text."))
        assert [hit.doc_id for hit in index.search("another", mode="lexical")] == ["long"]
        assert index.search("whales", mode="lexical") == []
    with closing(Store(folder)) as store:
        assert list(find_problems(store)) == []


def test_a_migration_that_fails_leaves_the_store_as_it_was(folder, encoder, monkeypatch):
    before = state(folder, encoder)
    to_format(folder, 3)

    def fail(tx):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(migrate, "rewrite_words", fail)
        with pytest.raises(KeyboardInterrupt):
            Store(folder)
    with sqlite3.connect(folder / FILE) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (3,)
        assert len(connection.execute("SELECT text FROM documents").fetchall()) == len(DOCUMENTS)
    connection.close()
    assert state(folder, encoder) == before


def test_words_of_another_unicode_version_are_written_anew_before_any_is_deleted(folder, encoder):
    with sqlite3.connect(folder / FILE) as connection:
        (number,) = connection.execute("SELECT max(number) FROM passages").fetchone()
        title, text = "Only a title", ""
        old = lexical_terms(title, text)["lexical"]
        connection.execute(
            "INSERT INTO lexical (lexical, rowid, terms) VALUES ('delete', ?, ?)", (number, old)
        )
        connection.execute("INSERT INTO lexical (rowid, terms) VALUES (?, 'tit le')", (number,))
        connection.execute("UPDATE meta SET value = 'Unicode 1.1' WHERE key = 'words_by'")
    connection.close()
    with Index.open(folder, encoder) as index:
        assert [hit.doc_id for hit in index.search("le", mode="lexical")] == ["title only"]
        index.delete("title only")
        assert index.search("le", mode="lexical") == []
    with closing(Store(folder)) as store:
        assert list(find_problems(store)) == []

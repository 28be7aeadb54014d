"""Changing the embedder of an index: what is found before, meanwhile and afterwards, and after a kill."""

import multiprocessing
import sqlite3
import time
from pathlib import Path

import numpy as np
import pytest

from embed import Encoder
from embed.network.config import Fusion
from gpt_core.common.errors import InputError
from index.index import Index
from index.manage_index import reembed, stats, verify
from index.reading.document import Document
from index.store import reembed as module
from index.store.store import FILE

DOCUMENTS = [
    Document(f"d{i}", f"Document {i} is about {'whales' if i % 3 else 'engines'}. " * 9) for i in range(12)
]


@pytest.fixture
def folder(tmp_path, embedder):
    with Index.create(tmp_path / "index", Encoder.from_pretrained(embedder), max_tokens=32) as index:
        index.add(DOCUMENTS)
    return tmp_path / "index"


@pytest.fixture
def other(make_encoder):
    return make_encoder(seed=1, name="other", fusion=Fusion("z", 0.5))


def found(index: Index, query: str = "whales", mode="dense") -> dict[str, float]:
    return {hit.passage_id: round(hit.score, 4) for hit in index.search(query, k=100, mode=mode)}


def built_with(encoder: Encoder, folder: Path) -> dict[str, float]:
    with Index.create(folder, encoder, max_tokens=32) as index:
        index.add(DOCUMENTS)
        return found(index)


def test_afterwards_the_index_is_as_if_built_with_the_new_embedder(tmp_path, folder, other):
    expected = built_with(other, tmp_path / "new")
    with Index.open(folder) as index:
        before, words = found(index), found(index, mode="lexical")
        assert before.keys() == expected.keys()
        assert before != expected
        done = index.reembed(other)
        assert (done.before, done.encoded, done.truncated) == (0, len(expected), 0)
        assert found(index) == expected
        assert found(index, mode="lexical") == words
        assert index.settings.fusion == Fusion("z", 0.5)
        assert index.add(DOCUMENTS).unchanged == len(DOCUMENTS)
        index.add(Document("later", "whales"))
        assert "later#0-6" in found(index)
    verify(index=str(folder))
    with pytest.raises(InputError, match=r"was built with other \(\w+\), not with"):
        Index.open(folder, Encoder.from_pretrained("zhizhi-mini"))


def test_its_corpus_map_is_fitted_in_the_same_transaction(tmp_path, folder, make_encoder):
    mapped = make_encoder(seed=2, corpus_map="whiten", name="mapped")
    expected = built_with(mapped, tmp_path / "new")
    with Index.open(folder) as index:
        index.reembed(mapped)
        assert index.stats()["map_passages"] == index.stats()["passages"]
        after = found(index)
    assert after.keys() == expected.keys()
    np.testing.assert_allclose([after[name] for name in expected], list(expected.values()), atol=0.02)


def test_an_index_of_vectors_gets_an_embedder(tmp_path):
    with Index.create(tmp_path / "index", dimension=3) as index:
        index.add(DOCUMENTS[:2], np.eye(3)[:2])
        index.reembed(Encoder.from_pretrained("zhizhi-mini"))
        assert len(found(index)) == 2


def test_searches_go_on_and_other_objects_notice_the_swap(folder, other, monkeypatch):
    """An index that is open elsewhere has the old vectors until the swap, then loads the embedder that is named."""
    monkeypatch.setattr("index.index.load_embedder", lambda name: other if name == "other" else load(name))
    load, seen = Encoder.from_pretrained, []
    with (
        Index.open(folder) as reader,
        Index.open(folder, reader.encoder) as given,
        Index.open(folder) as writer,
    ):
        before = found(reader)
        encode = other.encode_document

        def encode_and_search(texts):
            seen.append(found(reader))
            return encode(texts)

        monkeypatch.setattr(module, "PASSAGES_PER_COMMIT", 7)
        monkeypatch.setattr(other, "encode_document", encode_and_search)
        writer.reembed(other)
        assert len(seen) > 3
        assert all(one == before for one in seen)
        assert found(reader) == found(writer) != before
        assert reader.encoder is other
        with pytest.raises(InputError, match=r"was built with other \(\w+\), not with"):
            given.search("whales")


def slowly(folder: str, embedder: str) -> None:
    encode, module.PASSAGES_PER_COMMIT = Encoder.encode_document, 5

    def slow(encoder, texts):
        time.sleep(0.2)
        return encode(encoder, texts)

    Encoder.encode_document = slow
    reembed(index=folder, embedder=embedder)


def test_a_killed_run_is_continued(tmp_path, folder, embedder):
    """Also if documents were deleted and added in the meantime; nothing is encoded twice."""
    other = tmp_path / "other"
    encoder = Encoder.from_pretrained(embedder)
    encoder.model.wte.weight.data.neg_()
    encoder.model.save_pretrained(other)
    for name in ("tokenizer.json", "embedder.json"):
        (other / name).write_text((embedder / name).read_text())
    process = multiprocessing.get_context("fork").Process(target=slowly, args=(str(folder), str(other)))
    process.start()
    with sqlite3.connect(folder / FILE) as connection:
        while connection.execute("SELECT count(*) FROM new_vectors").fetchone()[0] < 10:
            assert process.is_alive()
            time.sleep(0.02)
    process.kill()
    process.join()
    with sqlite3.connect(folder / FILE) as connection:
        n_before = connection.execute("SELECT count(*) FROM new_vectors").fetchone()[0]
    connection.close()
    verify(index=str(folder))
    with Index.open(folder) as index:
        n_deleted = len([name for name in found(index) if name.startswith("d0#")])
        index.delete("d0")
        index.add(Document("later", "whales and engines"))
        passages = index.stats()["passages"]
        done = index.reembed(Encoder.from_pretrained(other))
        assert done.before == n_before - n_deleted
        assert done.before + done.encoded == passages
        after = found(index)
    verify(index=str(folder))
    with Index.create(tmp_path / "new", Encoder.from_pretrained(other), max_tokens=32) as index:
        index.add([*DOCUMENTS[1:], Document("later", "whales and engines")])
        expected = found(index)
    assert after.keys() == expected.keys()


def test_unfinished_vectors_of_another_embedder_are_not_used(folder, other, make_encoder, monkeypatch):
    third = make_encoder(seed=2, name="third")
    with Index.open(folder) as index:
        with monkeypatch.context() as patch:
            patch.setattr(module, "PASSAGES_PER_COMMIT", 7)
            patch.setattr(other, "encode", fails_at(2, other.encode))
            with pytest.raises(ZeroDivisionError):
                index.reembed(other)
        before = found(index)
        done = index.reembed(third)
        assert (done.before, done.encoded) == (0, len(before))
        with pytest.raises(InputError, match=r"has the embedder third \(\w+\) already"):
            index.reembed(third)


def fails_at(call, function):
    calls = iter(range(1, 99))

    def fails(*arguments, **options):
        return function(*arguments, **options) if next(calls) != call else 1 / 0

    return fails


def test_wrong_arguments(tmp_path, folder, make_encoder, embedder, capsys):
    with Index.open(folder) as index:
        short = make_encoder(seed=1, max_tokens=31)
        with pytest.raises(InputError, match="max_tokens is 32; the embedder tiny takes at most 31"):
            index.reembed(short)
        with Index.open(folder)._current().store.lock(), pytest.raises(InputError, match="is writing to"):
            index.reembed(make_encoder(seed=1))
    with pytest.raises(InputError, match="There is no folder or cached model nothing"):
        reembed(index=str(folder), embedder="nothing")
    stats(index=str(folder))
    assert str(embedder) in capsys.readouterr().out

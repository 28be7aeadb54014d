"""BEIR folders: title and text are joined, and judgements of unknown ids are refused."""

import pytest

from embed.data.beir import read_beir, read_corpus, read_qrels
from gpt_core.common.errors import InputError
from tests.beir_folders import write_beir

DOCUMENTS = [{"_id": "1", "title": "A title", "text": "A text. "}, {"_id": 2, "text": "another"}]
QUERIES = [{"_id": "q", "text": "a query "}, {"_id": "r", "text": "unjudged"}]


def test_reads_texts_and_judgements(tmp_path):
    folder = write_beir(tmp_path / "set", DOCUMENTS, QUERIES, "q\t1\t2\nq\t2\t-1\n", "dev")
    documents, queries, qrels = read_beir(folder, "dev")
    assert documents == {"1": "A title A text.", "2": "another"}
    assert queries == {"q": "a query ", "r": "unjudged"}
    assert qrels == {"q": {"1": 2, "2": -1}}


@pytest.mark.parametrize(
    ("qrels", "said"),
    [
        ("q\t1\t1\nz\t1\t1\ny\t1\t1\n", "judges query z, which is not in queries.jsonl, and 1 more;"),
        (
            "q\t1\t1\nq\t8\t0\nq\t9\t1\nr\t9\t1\n",
            "judges document 8, .* in corpus.jsonl, and 1 more;",
        ),
        ("q\t1\t1\nq\t9\t1\nr\t9\t1\n", "judges document 9, which is not in corpus.jsonl;"),
        ("q 1 1\n", "test.tsv, line 2: expected query, document and grade"),
    ],
)
def test_judgements_of_unknown_ids_are_refused(tmp_path, qrels, said):
    with pytest.raises(InputError, match=said):
        read_beir(write_beir(tmp_path / "set", DOCUMENTS, QUERIES, qrels), "test")


def test_judgements_may_begin_with_a_byte_order_mark_and_must_be_utf8(tmp_path):
    folder = write_beir(tmp_path / "set", DOCUMENTS, QUERIES, "q\t1\t1\n")
    path = folder / "qrels" / "test.tsv"
    expected, plain = read_qrels(folder, "test"), path.read_text()
    path.write_text(plain, encoding="utf-8-sig")
    assert read_qrels(folder, "test") == expected == {"q": {"1": 1}}
    path.write_bytes(b"caf\xe9\t1\t1\n")
    with pytest.raises(InputError, match=r"test\.tsv is not UTF-8: .* at byte 3"):
        read_qrels(folder, "test")


@pytest.mark.parametrize(
    ("documents", "said"),
    [
        ([*DOCUMENTS, {"_id": "2", "text": "again"}], "line 3: the id '2' occurs twice"),
        ([{"text": "nameless"}], 'line 1: expected "_id"'),
        ([{"_id": "1", "contents": "x"}], "its keys are _id, contents"),
    ],
)
def test_broken_corpora_are_refused(tmp_path, documents, said):
    with pytest.raises(InputError, match=said):
        read_corpus(write_beir(tmp_path / "set", documents, QUERIES, ""))

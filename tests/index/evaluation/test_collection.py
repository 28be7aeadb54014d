"""Test collections: reading, sampling, and refused folders."""

import json

import numpy as np
import pytest

from gpt_core.common.errors import InputError
from index.evaluation.collection import Collection
from tests.beir_folders import write_beir

DOCUMENTS = [{"_id": f"d{i}", "title": f"Title {i}", "text": f"text {i}"} for i in range(6)]
QUERIES = [{"_id": f"q{i}", "text": f"query {i}"} for i in range(4)]


def test_reads_a_beir_folder_and_keeps_the_judged_queries(tmp_path):
    qrels = "q0\td1\t2\nq0\td2\t0\nq2\td5\t1\nq3\td0\t0\n"
    collection = Collection.load(write_beir(tmp_path / "set", DOCUMENTS, QUERIES, qrels), "test")
    assert collection.name == "set"
    assert collection.texts[1] == "Title 1 text 1"
    # q3 has nothing relevant, q1 no judgement
    assert collection.queries == {
        "q0": "query 0",
        "q2": "query 2",
    }
    assert collection.qrels["q0"] == {"d1": 2, "d2": 0}


@pytest.mark.parametrize(
    ("qrels", "split", "said"),
    [
        ("q0\td1\t1\n", "dev", r"dev.tsv is missing; available splits: test"),
        ("q9\td1\t1\n", "test", "q9"),
        ("q0 d1 1\n", "test", "test.tsv, line 2"),
        ("q0\td1\thigh\n", "test", "test.tsv, line 2"),
        ("q0\td1\t0\n", "test", "0 judged queries"),
    ],
)
def test_bad_judgements_are_refused(tmp_path, qrels, split, said):
    folder = write_beir(tmp_path / "set", DOCUMENTS, QUERIES, qrels)
    with pytest.raises(InputError, match=said):
        Collection.load(folder, split)


def test_a_folder_without_queries_is_refused(tmp_path):
    folder = write_beir(tmp_path / "set", DOCUMENTS, QUERIES, "q0\td1\t1\n")
    (folder / "queries.jsonl").unlink()
    with pytest.raises(InputError, match=r"has no queries\.jsonl"):
        Collection.load(folder, "test")


def test_pairs_with_the_same_positive_share_a_document(tmp_path):
    pairs = [
        {"query": "a", "positive": "x"},
        {"query": "b", "positive": "y"},
        {"query": "c", "positive": "x"},
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    collection = Collection.from_pairs(path)
    assert collection.texts == ["x", "y"]
    assert [list(grades) for grades in collection.qrels.values()] == [["d0"], ["d1"], ["d0"]]
    path.write_text('{"query": "a", "positive": "x"}\n{"query": "a"}\n')
    with pytest.raises(InputError, match="line 2"):
        Collection.from_pairs(path)


def test_a_sample_is_reproducible_and_every_query_can_be_answered(tmp_path):
    qrels = "".join(f"q{i}\td{i}\t1\nq{i}\td5\t1\n" for i in range(4))
    collection = Collection.load(write_beir(tmp_path / "set", DOCUMENTS, QUERIES, qrels), "test")
    sample = collection.sample(3, 4)
    assert len(sample.queries) == 3
    assert len(sample.documents) == 4
    assert sample == collection.sample(3, 4)
    for grades in sample.qrels.values():
        assert any(sample.documents.get(d) and grade > 0 for d, grade in grades.items())


def test_a_run_maps_queries_to_scored_document_ids(tmp_path):
    collection = Collection.load(write_beir(tmp_path / "set", DOCUMENTS, QUERIES, "q0\td1\t1\n"), "test")
    run = collection.run(np.array([[2, 1, 0]]), np.array([[3.0, 1.0, 0.0]]), above=0)
    assert run == {"q0": {"d2": 3.0, "d1": 1.0}}

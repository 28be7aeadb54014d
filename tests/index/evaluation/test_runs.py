"""TREC run files."""

import ir_measures
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from index.evaluation.collection import Collection
from index.evaluation.runs import read_run, write_run
from index.reading.document import Document

NAMES = [f"d{i}" for i in range(8)]
SCORES = st.dictionaries(st.sampled_from(NAMES), st.floats(-1e3, 1e3, width=32), min_size=1)


def collection(*queries: str, documents: list[str] = NAMES) -> Collection:
    qrels = {query: {documents[0]: 1} for query in queries}
    return Collection(
        "set", "test", {d: Document(d, "text") for d in documents}, dict.fromkeys(queries, "?"), qrels
    )


@settings(max_examples=30)
@given(st.dictionaries(st.sampled_from(["q1", "q2", "q3"]), SCORES, min_size=1))
def test_run_files_round_trip_here_and_in_ir_measures(tmp_path_factory, run):
    path = write_run(tmp_path_factory.mktemp("runs"), collection("q1", "q2", "q3"), "dense", run)
    assert path.name == "set.dense.run"
    assert read_run(path, collection("q1", "q2", "q3")) == run
    theirs: dict[str, dict[str, float]] = {}
    for row in ir_measures.read_trec_run(str(path)):
        theirs.setdefault(row.query_id, {})[row.doc_id] = row.score
    assert theirs == run
    for query in run:  # ranks follow the scores
        rows = [line.split() for line in path.read_text().splitlines() if line.startswith(f"{query} ")]
        assert [int(row[3]) for row in rows] == list(range(1, len(run[query]) + 1))
        scores = [float(row[4]) for row in rows]
        assert scores == sorted(scores, reverse=True)


def test_an_id_with_white_space_is_refused(tmp_path):
    spaced = collection("q1", documents=["a b"])
    with pytest.raises(InputError, match="the id 'a b' has white space"):
        write_run(tmp_path, spaced, "dense", {"q1": {"a b": 1.0}})
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("q1 Q0 d1 1 0.5 x\nq1 Q0 d2 2 high x\n", "line 2: expected query"),
        ("q1 d1 0.5\n", "line 1: expected query"),
        ("q1 Q0 d99 1 0.5 x\n", "line 1: set has no document d99"),
        ("other Q0 d1 1 0.5 x\n", "no results for the queries of set"),
        ("", "no results for the queries of set"),
    ],
)
def test_bad_run_files_are_refused(tmp_path, text, said):
    path = tmp_path / "set.x.run"
    path.write_text(text)
    with pytest.raises(InputError, match=said):
        read_run(path, collection("q1"))
    with pytest.raises(InputError, match="is missing"):
        read_run(tmp_path / "none.run", collection("q1"))

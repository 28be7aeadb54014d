"""Pages of results, few passages of a document, diverse passages."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from index.index import Index
from index.reading.document import Document

WORDS = ["whale", "engine", "plum", "cat", "tower", "river", "snow"]


@pytest.fixture(scope="module")
def index(tmp_path_factory, make_encoder):
    """Twelve documents of one to twelve passages."""
    with Index.create(tmp_path_factory.mktemp("selection") / "index", make_encoder(), max_tokens=16) as index:
        for number in range(1, 13):
            lines = [
                f"The {WORDS[(number * i) % 7]} of part {i} in document {number}." for i in range(number)
            ]
            index.add(Document(f"d{number}", "\n\n".join(lines), f"T{number}"))
        yield index


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    k=st.integers(1, 30), offset=st.integers(0, 40), most=st.none() | st.integers(1, 3),
    mode=st.sampled_from(["dense", "lexical", "hybrid"]), only=st.none() | st.lists(st.integers(1, 12), max_size=6),
)  # fmt: skip
def test_an_offset_and_few_passages_of_a_document(index, k, offset, most, mode, only):
    wanted = None if only is None else {"doc_id": [f"d{number}" for number in only]}
    every = index.search("whale engine", 1000, mode, wanted)
    count: dict[str, int] = {}
    kept = []
    for hit in every:
        count[hit.doc_id] = count.get(hit.doc_id, 0) + 1
        if most is None or count[hit.doc_id] <= most:
            kept.append(hit.passage_id)
    found = index.search("whale engine", k, mode, wanted, offset=offset, per_document=most)
    assert [hit.passage_id for hit in found] == kept[offset : offset + k]


def test_diverse_passages_are_those_of_maximal_marginal_relevance(tmp_path):
    rng = np.random.default_rng(3)
    vectors = rng.normal(size=(40, 8))
    vectors[:20] = vectors[0] + 0.05 * rng.normal(size=(20, 8))  # nearly the same
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    query = vectors[0]
    with Index.create(tmp_path / "index", dimension=8) as index:
        index.add([Document(str(i), f"text {i}") for i in range(40)], vectors)
        plain = [int(hit.doc_id) for hit in index.search(query, 6)]
        assert set(plain) < set(range(20))
        scores = vectors @ query
        scaled = (scores - scores.min()) / (scores.max() - scores.min())
        for diversity in (0.3, 0.7, 1.0):
            expected: list[int] = []
            while len(expected) < 6:
                worth = {
                    i: (1 - diversity) * scaled[i]
                    - diversity * (max(vectors[i] @ vectors[j] for j in expected) if expected else 0)
                    for i in range(40)
                    if i not in expected
                }
                # where several are worth the same, the better ranked one is taken
                expected.append(max(worth, key=lambda i: (round(worth[i], 6), scores[i])))
            found = [int(hit.doc_id) for hit in index.search(query, 6, diversity=diversity)]
            assert found == expected
        assert len(set(found) - set(range(20))) >= 4
        assert [int(h.doc_id) for h in index.search(query, 3, diversity=0.7, offset=3)] == [
            int(h.doc_id) for h in index.search(query, 6, diversity=0.7)
        ][3:]


def test_options_combine(index):
    found = index.search(["whale", "engine"], 5, per_document=1, diversity=0.5)
    assert [len({hit.doc_id for hit in hits}) for hits in found] == [5, 5]
    assert len(index.search("whale", 100, per_document=1, diversity=0.5)) == 12
    assert index.search("whale", 5, offset=1000) == []
    assert index.search("whale", 5, filter={"doc_id": "none"}, diversity=0.5, per_document=1) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"offset": -1}, "offset is -1; expected a whole number of at least 0"),
        ({"offset": True}, "offset is True"),
        ({"per_document": 0}, "per_document is 0; expected a whole number of at least 1"),
        ({"per_document": 1.5}, "per_document is 1.5"),
        ({"diversity": 1.1}, "diversity is 1.1; expected 0 to 1"),
        ({"diversity": float("nan")}, "diversity is nan"),
        ({"diversity": 0.5, "mode": "lexical"}, "diversity compares vectors"),
        ({"k": 0}, "k is 0; expected a whole number of at least 1"),
        ({"mode": "fast"}, "mode is 'fast'; expected hybrid, dense, lexical"),
    ],
)
def test_values_out_of_range_are_refused(index, options, said):
    with pytest.raises(InputError, match=said):
        index.search("whale", **options)

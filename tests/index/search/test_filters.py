import numpy as np
import pytest

from gpt_core.common.errors import InputError
from index.index import Index
from index.reading.document import Document
from index.search.filters import parse_filter

METADATA = [
    {"status": "Final", "year": 2001, "tags": ["a", "b"], "draft": False, "date": "2024-05-17T10:00"},
    {"status": "Active", "year": 2010.5, "tags": [], "draft": True, "date": "2025-01-02"},
    {"status": "Final", "year": "2010", "tags": "b", "date": "unknown"},
    {"status": None, "year": 9, 'odd "name".$[0]': 1, "nested": {"status": "Final"}, "date": "2023-12-31"},
    {},
]


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    with Index.create(tmp_path_factory.mktemp("filters") / "index", dimension=4) as index:
        documents = [Document(f"d{i}", f"text {i}", metadata=metadata) for i, metadata in enumerate(METADATA)]
        index.add(documents, np.eye(5, 4))
        yield index


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({}, "01234"),
        ({"status": "Final"}, "02"),
        ({"status": ["Final", "Active"]}, "012"),
        ({"status": []}, ""),
        ({"status": "final"}, ""),
        ({"status": "Final", "year": 2001}, "0"),
        ({"year": 2010}, ""),
        ({"year": "2010"}, "2"),
        ({"year": {"gte": 2001}}, "01"),
        ({"year": {"gte": 9, "lte": 2001}}, "03"),
        ({"year": {"lte": "2011"}}, "2"),
        ({"tags": "b"}, "02"),
        ({"tags": {"gte": "b"}}, "02"),
        ({"draft": True}, "1"),
        ({"draft": False}, "0"),
        ({'odd "name".$[0]': 1}, "3"),
        ({"nested": "Final"}, ""),
        ({"no such field": 1}, ""),
        ({"doc_id": "d3"}, "3"),
        ({"doc_id": ["d0", "d4", "d9"], "status": "Final"}, "0"),
        ({"doc_id": {"gte": "d2", "lte": "d3"}}, "23"),
        ({"draft": 1}, ""),
        ({"draft": 0}, ""),
        ({"draft": {"gte": 0}}, ""),
        ({'odd "name".$[0]': True}, ""),
        ({"draft": [1, True]}, "1"),
        ({"doc_id": True}, ""),
        ({"date": {"gte": 2025}}, "1"),
        ({"date": {"lte": 2024}}, "03"),
        ({"date": {"gte": "2024-05", "lte": "2024-05"}}, "0"),
        ({"date": {"gte": "2024-05-18"}}, "1"),
        ({"date": {"lte": "2024-05-17"}}, "03"),
        ({"date": {"lte": "V"}}, "013"),
        ({"status": "'; DROP TABLE documents; --"}, ""),
    ],
)
def test_a_filter_selects_documents(index, wanted, found):
    hits = index.search(np.ones(4), k=10, filter=wanted)
    assert sorted(hit.doc_id for hit in hits) == [f"d{i}" for i in found]


@pytest.mark.parametrize(
    "value",
    [
        None,
        {},
        {"gt": 3},
        {"gte": [1]},
        {"gte": True},
        {"gte": 1, "most": 2},
        [None],
        [["a"]],
        float("nan"),
        2**63,
        "\ud83d",
        object(),
    ],
)
def test_invalid_conditions_are_refused(index, value):
    with pytest.raises(InputError, match="filter on 'year'"):
        index.search(np.ones(4), filter={"year": value})


def test_a_filter_has_at_most_100_fields(index):
    assert index.search(np.ones(4), filter={f"field {i}": 1 for i in range(100)}) == []
    with pytest.raises(InputError, match="conditions on 101 fields; expected at most 100"):
        index.search(np.ones(4), filter={f"field {i}": 1 for i in range(101)})


def test_fields_that_no_document_has_are_named_and_doc_id_is_none_of_them(index):
    assert index.unknown_fields({"status": "Final", "yaer": 1, "doc_id": "d0", "statu": 1}) == [
        "yaer",
        "statu",
    ]


def test_parses_filters_of_the_command_line():
    assert parse_filter(["status=Final", "status=Active"]) == {"status": ["Final", "Active"]}
    assert parse_filter(["year>=2001", "year<=2010.5"]) == {"year": {"gte": 2001, "lte": 2010.5}}
    assert parse_filter(["year=2010", "draft=true"]) == {"year": ["2010", 2010], "draft": ["true", True]}
    assert parse_filter(["url=https://a.b/?x=1", "empty="]) == {"url": ["https://a.b/?x=1"], "empty": [""]}
    assert parse_filter([f"n>={2**63 - 1}", f"n<={2**63}"]) == {"n": {"gte": 2**63 - 1, "lte": str(2**63)}}
    assert parse_filter([" status = Final ", "year >= 2001"]) == {"status": ["Final"], "year": {"gte": 2001}}
    assert parse_filter(["a=NaN", "b=1e999", "c=99999999999999999999"]) == {
        "a": ["NaN"], "b": ["1e999"], "c": ["99999999999999999999"]
    }  # fmt: skip
    for wrong in (
        *(["year"], ["=2"], ["year=1", "year>=2"], ["year>=1", "year=2"], ["year>=1", "year>=2"]),
        *(["status!=final"], ["status != final"], ["year==2020"], ["year=>2020"], ["year=<2020"]),
        *(["year>2020"], ["year<2020"], ["year<>2020"], [" =2"], ["year>==2"]),
    ):
        with pytest.raises(InputError, match="filter"):
            parse_filter(wrong)

import itertools
import json
import operator
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt_core.common.errors import InputError
from index.index import Index
from index.reading.document import Document
from index.search.filter_words import parse_filter
from index.search.filters import allowed

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
        ({"year": {"gt": 9, "lt": 2010.5}}, "0"),
        ({"date": {"gt": "2024-05"}}, "1"),
        ({"date": {"lt": "2024-05"}}, "3"),
        ({"year": {"in": [2001, "2010"]}}, "02"),
        ({"status": {"ne": "Final"}}, "134"),
        ({"status": {"ne": ["Final", "Active"]}}, "34"),
        ({"tags": {"ne": "a"}}, "1234"),
        ({"status": {"contains": "ina"}}, "02"),
        ({"year": {"contains": "1"}}, "2"),
        ({"doc_id": {"contains": "d3"}}, "3"),
        ({"status": {"exists": True}}, "012"),
        ({"status": {"exists": False}}, "34"),
        ({"tags": {"exists": True}}, "012"),
        ({"doc_id": {"exists": False}}, ""),
        ({"status": {"exists": True, "ne": "Active"}, "year": {"gte": 1}}, "0"),
        ({"nested": {"gte": "a"}}, ""),
        ({"nested": {"contains": "Final"}}, ""),
        ({"nested.status": "Final"}, "3"),
        ({"nested.status": {"exists": False}}, "0124"),
        ({"nested.other": "Final"}, ""),
        ({"nested.": "Final"}, ""),
        ({"$or": [{"year": 2001}, {"doc_id": "d4"}]}, "04"),
        ({"$or": []}, ""),
        ({"$and": []}, "01234"),
        ({"$not": {"status": "Final"}}, "134"),
        ({"$not": {}}, ""),
        ({"$and": [{"status": "Final"}, {"$not": {"tags": "a"}}]}, "2"),
        ({"status": "Final", "$or": [{"draft": False}, {"year": {"lt": 0}}]}, "0"),
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
        {"above": 3},
        {"in": "abc"},
        {"contains": 3},
        {"exists": 1},
        {"ne": None},
        {"ne": {"gt": 3}},
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


@pytest.mark.parametrize(
    "wanted",
    [
        {"$or": {"year": 1}},
        {"$or": "year"},
        {"$and": [1]},
        {"$not": [{"year": 1}]},
        {"$nor": []},
        {"$not": None},
    ],
)
def test_what_is_no_filter_is_refused(index, wanted):
    with pytest.raises(InputError, match="filter"):
        index.search(np.ones(4), filter=wanted)


def test_a_filter_has_at_most_100_conditions_and_10_filters_in_each_other(index):
    assert index.search(np.ones(4), filter={f"field {i}.a": {"gte": 1, "ne": 3} for i in range(100)}) == []
    with pytest.raises(InputError, match="has 101 conditions; expected at most 100"):
        index.search(np.ones(4), filter={"$or": [{f"field {i}": 1} for i in range(101)]})
    wanted = {"status": "Final"}
    for _ in range(10):
        wanted = {"$not": wanted}
    assert len(index.search(np.ones(4), filter=wanted)) == 2
    with pytest.raises(InputError, match="more than 10 filters in each other"):
        index.search(np.ones(4), filter={"$not": wanted})


LONG = "b" + 200 * "y"  # longer than what the index over fields keeps
VALUES = [1, 2, 2.5, "1", "b", "bc", True, False, None, ["b", 2], [], [{"b": 1}, ["b"], "c"], {"in": 1}]
VALUES += [[None], [2, LONG], LONG, {"in": {"in": 1}}, {"in": [LONG, True]}, "2024-05-17", ["2023", 2024]]
SCALARS = [1, 2, 2.5, "1", "b", "c", True, False, LONG]
CONDITIONS = st.one_of(
    st.sampled_from(SCALARS),
    st.lists(st.sampled_from(SCALARS), max_size=3),
    st.fixed_dictionaries(
        {},
        optional={
            "gte": st.sampled_from([1, "b", "2024-05"]), "gt": st.sampled_from([1, 2, "b"]),
            "lte": st.sampled_from([2, "b", 2024]), "lt": st.sampled_from([2.5, "c", "2024", "2024-06-01"]),
            "in": st.lists(st.sampled_from(SCALARS), max_size=3),
            "ne": st.sampled_from([*SCALARS, [1, "b"]]), "contains": st.sampled_from(["b", "bc", "yy"]),
            "exists": st.booleans(),
        },
    ).filter(bool),
)  # fmt: skip
FIELDS = st.dictionaries(st.sampled_from(["a", "b", "c.in", "a.in"]), CONDITIONS, min_size=1, max_size=2)
FILTERS = st.recursive(
    FIELDS,
    lambda inner: st.one_of(
        st.fixed_dictionaries({"$or": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries({"$and": st.lists(inner, max_size=2)}),
        st.fixed_dictionaries({"$not": inner}),
    ),
    max_leaves=4,
)


def same(value, other):
    return isinstance(value, bool) == isinstance(other, bool) and value == other


def within(value, sign, bound):
    compare = {"gte": operator.ge, "gt": operator.gt, "lte": operator.le, "lt": operator.lt}[sign]
    text = str(bound)
    is_date = isinstance(value, str) and re.match(r"[0-9]{4}-[0-9]", value)
    if is_date and re.fullmatch(r"[0-9]{4}(-[0-9]{2}){0,2}", text):
        return compare(value[: len(text)], text)
    if isinstance(value, bool | dict | list | None) or isinstance(value, str) != isinstance(bound, str):
        return False
    # a text that is no date is neither before nor after a month
    return compare(value, bound) and ("-" not in text or re.fullmatch("[0-9]{4}", value) is not None)


def meets(metadata, wanted):
    """`Index.search`'s filters in plain Python."""
    for name, condition in wanted.items():
        if name == "$or":
            ok = any(meets(metadata, part) for part in condition)
        elif name == "$and":
            ok = all(meets(metadata, part) for part in condition)
        elif name == "$not":
            ok = not meets(metadata, condition)
        else:
            ok = field_meets(metadata, name, condition)
        if not ok:
            return False
    return True


def field_meets(metadata, name, condition):
    value = metadata.get(name)
    if "." in name:
        outer, inner = name.split(".")
        value = metadata[outer].get(inner) if isinstance(metadata.get(outer), dict) else None
    values = value if isinstance(value, list) else [] if value is None else [value]
    if not isinstance(condition, dict):
        condition = {"in": condition if isinstance(condition, list) else [condition]}
    each = {key: one for key, one in condition.items() if key not in ("ne", "exists")}
    tests = {
        "in": lambda v, some: any(same(v, one) for one in some),
        "contains": lambda v, part: isinstance(v, str) and part in v,
    }
    if each and not any(
        all(tests[k](v, one) if k in tests else within(v, k, one) for k, one in each.items()) for v in values
    ):
        return False
    unwanted = condition.get("ne", [])
    unwanted = unwanted if isinstance(unwanted, list) else [unwanted]
    if any(same(v, one) for v in values for one in unwanted):
        return False
    return condition.get("exists", value is not None) == (value is not None)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(wanted=FILTERS)
def test_filters_equal_those_in_plain_python(many, wanted):
    expected = sorted(i for i, metadata in enumerate(MANY) if meets(metadata, wanted))
    with many._view.store.read() as tx:
        numbers = allowed(tx, wanted)
    assert [number - 1 for number in numbers] == expected


MANY = [
    {name: value for name, value in (("a", a), ("b", b), ("c", c)) if value != "absent"}
    for a, b, c in itertools.product(
        [*VALUES, "absent"], [1, "b", ["b", 2], "absent"], [{"in": 2}, 1, "absent"]
    )
]


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    with Index.create(tmp_path_factory.mktemp("many") / "index", dimension=2) as index:
        index.add([Document(str(i), "x", metadata=m) for i, m in enumerate(MANY)], np.ones((len(MANY), 2)))
        yield index


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
    assert parse_filter(["year>2001", "year<2010", "year!=2005", "year != 2006"]) == {
        "year": {"gt": 2001, "lt": 2010, "ne": ["2005", 2005, "2006", 2006]}
    }
    either = '{"$or": [{"year": 1}, {"year": {"exists": false}}]}'
    assert parse_filter([either]) == {"$and": [json.loads(either), {}]}
    assert parse_filter([either, "a=b"]) == {"$and": [json.loads(either), {"a": ["b"]}]}
    for wrong in (
        *(["year"], ["=2"], ["year=1", "year>=2"], ["year>=1", "year=2"], ["year>=1", "year>=2"]),
        *(
            ["year==2020"],
            ["year=>2020"],
            ["year=<2020"],
            ["year!2020"],
            ["year!!=2020"],
            ["year=1", "year!=2"],
        ),
        *(["year<>2020"], [" =2"], ["year>==2"], ["{"], ['{"$or": 1}'], ["{}, {}"]),
    ):
        with pytest.raises(InputError, match="filter"):
            parse_filter(wrong)


@pytest.mark.parametrize("key", ["x\\y", "x\ty", "键", "a b"])
@pytest.mark.parametrize("text", ["short", "long " * 50])
def test_any_key_inside_an_object_is_found(tmp_path, key, text):
    with Index.create(tmp_path / "index", dimension=2) as index:
        index.add(Document("d", "text", metadata={"c": {key: text}}), [1, 0])
        assert [hit.doc_id for hit in index.search([1, 0], filter={f"c.{key}": {"gt": ""}})] == ["d"]
        with pytest.raises(InputError, match="has a NUL character"):
            index.search([1, 0], filter={f"c.{key}": "a\0b"})

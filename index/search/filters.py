"""Metadata filters, which restrict the passages that a search returns."""

import json
import re
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np

from gpt_core.common.errors import InputError
from index.store.fields import Kind
from index.store.store import Numbers

# field → one value | alternative values | {operator: operand, …}; "$and", "$or" → filters; "$not" → a filter
Filter = dict[str, Any]
BOUNDS = {"gte": ">=", "gt": ">", "lte": "<=", "lt": "<"}
OPERATORS = (*BOUNDS, "in", "ne", "contains", "exists")
MAX_CONDITIONS = 100
MAX_DEPTH = 10  # of filters in filters; SQLite limits expressions to a depth of 1000

# A year, month or day, as ISO 8601 writes them.
YEAR = "[0-9][0-9][0-9][0-9]"
DATE = re.compile(r"[0-9]{4}(-[0-9]{2}){0,2}")

# A list field matches if any of its values does. The index over fields has the values `one`, except long texts, for
# which the metadata are read. Field names are bound parameters, never part of a JSON path. SQLite's value of true is 1,
# so that true and false are told by their kind; its value of an object is the text of its JSON. `+kind` is not looked
# up, so that SQLite looks up the kind and value of the condition instead.
HAS_VALUE = f"""p.document IN (
    SELECT document FROM fields AS one
    WHERE field = (SELECT number FROM field_names WHERE name = ?) AND +kind <= {Kind.BOOLEAN} AND {{condition}}
    UNION ALL
    SELECT d.number FROM fields AS long JOIN documents AS d ON d.number = long.document
    WHERE long.field = (SELECT number FROM field_names WHERE name = ?) AND long.kind = {Kind.LONG} AND EXISTS (
        SELECT 1 FROM (
            SELECT one.value, one.type IN ('true', 'false') AS kind
            FROM ({{fields}}) AS field, json_each(CASE field.type WHEN 'array' THEN field.value
                WHEN 'true' THEN '[true]' WHEN 'false' THEN '[false]' ELSE json_array(field.value) END) AS one
            WHERE field.type <> 'object' AND one.type NOT IN ('object', 'array')
        ) AS one WHERE {{condition}}))"""
EXISTS = f"""p.document IN (
    SELECT document FROM fields
    WHERE field = (SELECT number FROM field_names WHERE name = ?) AND kind <> {Kind.NULL})"""
NUMBER_OR_TEXT = f"one.kind = {Kind.VALUE}"
FIELD = "SELECT value, type FROM json_each(d.metadata) WHERE key = ?"
# A field inside an object, by a path whose keys are quoted.
NESTED = """ UNION ALL SELECT json_extract(d.metadata, ?), json_type(d.metadata, ?)
    WHERE json_type(d.metadata, ?) IS NOT NULL"""


class _Sql(NamedTuple):
    """A condition on a row of passages AS p, or on one value of a field, with the values of its parameters."""

    text: str
    values: list[Any]


def allowed(tx: sqlite3.Connection, wanted: Filter) -> Numbers:
    """The ids (n,) int64, sorted ascending, of the passages whose documents meet every condition of `wanted`.

    Conditions on metadata are looked up in the index over fields, without reading the documents.

    Raises:
        InputError: for a malformed condition.
    """
    n_conditions = sum(1 for _ in fields_of(wanted))
    if n_conditions > MAX_CONDITIONS:
        raise InputError(f"The filter has {n_conditions} conditions; expected at most {MAX_CONDITIONS}.")
    condition = _all_of(wanted)
    rows = tx.execute(f"SELECT p.number FROM passages AS p WHERE {condition.text}", condition.values)
    return np.sort(np.fromiter(chain.from_iterable(rows), dtype=np.int64))


def fields_of(wanted: Any, depth: int = 0) -> Iterator[str]:
    """The fields of a filter, one for each condition.

    Raises:
        InputError: if a part is no filter, or filters are nested too deeply.
    """
    if not isinstance(wanted, Mapping):
        raise InputError(f"filter {wanted!r}; expected an object of fields and their values.")
    if depth > MAX_DEPTH:
        raise InputError(f"The filter has more than {MAX_DEPTH} filters in each other.")
    for name, value in wanted.items():
        if name in ("$and", "$or"):
            if not isinstance(value, Sequence) or isinstance(value, str):
                raise InputError(f"filter {name!r}: {value!r}; expected a list of filters.")
            for part in value:
                yield from fields_of(part, depth + 1)
        elif name == "$not":
            yield from fields_of(value, depth + 1)
        elif isinstance(name, str) and not name.startswith("$"):
            _check_unicode(name, name)
            yield name
        else:
            raise InputError(f"filter {name!r}; expected a field, '$and', '$or' or '$not'.")


def unknown_fields(tx: sqlite3.Connection, wanted: Filter) -> list[str]:
    """The fields of a filter that no document has."""
    unknown = []
    for name in dict.fromkeys(fields_of(wanted)):
        source = _source(name)
        query = f"SELECT EXISTS (SELECT 1 FROM documents AS d WHERE EXISTS ({source.text}))"
        if name != "doc_id" and not tx.execute(query, source.values).fetchone()[0]:
            unknown.append(name)
    return unknown


def _all_of(wanted: Filter) -> _Sql:
    return _joined(" AND ", [_part(name, value) for name, value in wanted.items()])


def _part(name: str, value: Any) -> _Sql:
    """One entry of a filter."""
    if name == "$and":
        return _joined(" AND ", [_all_of(part) for part in value])
    if name == "$or":
        return _joined(" OR ", [_all_of(part) for part in value])
    if name == "$not":
        return _negated(_all_of(value))
    if not isinstance(value, dict):
        return _has(name, _equal(name, value))
    if not value or not value.keys() <= set(OPERATORS):
        raise InputError(
            f"filter on {name!r}: {value!r}; expected {', '.join(OPERATORS)}, such as {{'gte': 2020}}."
        )
    bounds = [_bound(name, sign, value[key]) for key, sign in BOUNDS.items() if key in value]
    if "in" in value:
        if not isinstance(value["in"], list | tuple | set | frozenset):
            raise InputError(f"filter on {name!r}: {value!r}; expected a list of values for 'in'.")
        bounds.append(_equal(name, value["in"]))
    if "contains" in value:
        bounds.append(_contains(name, value["contains"]))
    # Of a list, one value must be within all bounds.
    parts = [_has(name, _joined(" AND ", bounds))] if bounds else []
    if "ne" in value:
        parts.append(_negated(_has(name, _equal(name, value["ne"]))))
    if "exists" in value:
        parts.append(_exists(name, value["exists"]))
    return _joined(" AND ", parts)


def _joined(word: str, parts: Sequence[_Sql]) -> _Sql:
    """Conditions joined by AND (of none: true) or OR (of none: false)."""
    if not parts:
        return _Sql("0" if "OR" in word else "1", [])
    return _Sql(
        f"({word.join(part.text for part in parts)})", [value for part in parts for value in part.values]
    )


def _negated(part: _Sql) -> _Sql:
    return _Sql(f"(({part.text}) IS NOT TRUE)", part.values)


def _source(name: str) -> _Sql:
    """The rows (value, type) of a field: of this name, or, with dots in it, inside objects."""
    if "." not in name or '"' in name:
        return _Sql(FIELD, [name])
    path = "$" + "".join(f'."{key}"' for key in name.split("."))
    return _Sql(FIELD + NESTED, [name, path, path, path])


def _has(name: str, condition: _Sql) -> _Sql:
    """Whether a value of the field meets a condition."""
    if name == "doc_id":
        text = f"p.document IN (SELECT d.number FROM documents AS d WHERE {condition.text})"
        return _Sql(text, condition.values)
    source = _source(name)
    text = HAS_VALUE.format(fields=source.text, condition=condition.text)
    return _Sql(text, [name, *condition.values, name, *source.values, *condition.values])


def _exists(name: str, wanted: Any) -> _Sql:
    if not isinstance(wanted, bool):
        raise InputError(f"filter on {name!r}: {wanted!r} for 'exists'; expected true or false.")
    if name == "doc_id":
        return _Sql(str(int(wanted)), [])
    found = _Sql(EXISTS, [name])
    return found if wanted else _negated(found)


# The following conditions are on one value of a field, or on the document's id.


def _column(name: str) -> str:
    return "d.id" if name == "doc_id" else "one.value"


def _equal(name: str, value: Any) -> _Sql:
    column = _column(name)
    values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    values = [_scalar(name, one) for one in values]
    if name == "doc_id":
        return _Sql(f"{column} IN (SELECT value FROM json_each(?))", [json.dumps(values)])
    parts = []
    for kind in (Kind.VALUE, Kind.BOOLEAN):
        some = [one for one in values if isinstance(one, bool) == (kind == Kind.BOOLEAN)]
        if some:
            text = f"(one.kind = {kind} AND {column} IN (SELECT value FROM json_each(?)))"
            parts.append(_Sql(text, [json.dumps(some)]))
    return _joined(" OR ", parts)


def _contains(name: str, part: Any) -> _Sql:
    if not isinstance(part, str):
        raise InputError(f"filter on {name!r}: {part!r} for 'contains'; expected a text.")
    _check_unicode(name, part)
    column = _column(name)
    return _Sql(f"(typeof({column}) = 'text' AND instr({column}, ?) > 0)", [part])


def _bound(name: str, sign: str, value: Any) -> _Sql:
    """A comparison of numbers with a number, of texts with a text, and of dates with a year, a month or a day."""
    if isinstance(value, bool):
        raise InputError(f"filter on {name!r}: {value!r} as a bound; expected a string or a number.")
    bound, column = _scalar(name, value), _column(name)
    text = str(bound)
    is_number_or_text = "1" if name == "doc_id" else NUMBER_OR_TEXT
    # SQLite sorts all numbers before all texts, so the types are compared first.
    same_type = f"typeof({column}) {'=' if isinstance(bound, str) else '<>'} 'text'"
    test = f"({is_number_or_text} AND {same_type} AND {column} {sign} ?)"
    if not DATE.fullmatch(text):
        return _Sql(test, [bound])
    # As much of a date as the bound has is compared: `<= 2024-05` includes all of May.
    dates = f"({column} GLOB '{YEAR}-[0-9][0-9]*' AND substr({column}, 1, ?) {sign} ?)"
    if "-" in text:  # other texts, such as "unknown", are neither before nor after a date
        return _Sql(f"({dates} OR ({column} GLOB '{YEAR}' AND {test}))", [len(text), text, bound])
    return _Sql(f"({test} OR {dates})", [bound, len(text), text])


def _scalar(name: str, value: Any) -> str | int | float:
    if not isinstance(value, str | int | float) or value != value or abs(_number(value)) >= 2**63:
        raise InputError(f"filter on {name!r}: {value!r}; expected a string, a number, true or false.")
    _check_unicode(name, str(value))
    return value


def _check_unicode(name: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise InputError(
            f"filter on {name!r}: {text!r} has an unpaired surrogate; expected Unicode text."
        ) from None


def _number(value: str | int | float) -> int | float:
    return 0 if isinstance(value, str) else value

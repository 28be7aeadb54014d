"""Metadata filters, which restrict the passages that a search returns."""

import json
import re
import sqlite3
from collections.abc import Iterable
from typing import Any

import numpy as np

from gpt_core.common.errors import InputError
from index.store.store import Numbers

# field → one value | alternative values | {"gte": …, "lte": …}
Filter = dict[str, Any]
BOUNDS = {"gte": ">=", "lte": "<="}
MAX_FIELDS = 100  # SQLite limits expressions to a depth of 1000

# A year, month or day, as ISO 8601 writes them.
YEAR = "[0-9][0-9][0-9][0-9]"
DATE = re.compile(r"[0-9]{4}(-[0-9]{2}){0,2}")
OPERATOR = re.compile(r"(?s)\s*([^<>=]*[^<>=!\s])\s*(>=|<=|=)(?![<>=])\s*(.*?)\s*")

# A list field matches if any of its values does. Field names are bound parameters, never part of a JSON path. SQLite's
# value of true is 1, so that true and false are told by their type.
HAS_FIELD = """EXISTS (
    SELECT 1 FROM json_each(d.metadata) AS field,
        json_each(CASE field.type WHEN 'array' THEN field.value WHEN 'true' THEN '[true]' WHEN 'false' THEN '[false]'
                  ELSE json_array(field.value) END) AS one
    WHERE field.key = ? AND {condition})"""
NUMBER_OR_TEXT = "one.type NOT IN ('true', 'false')"


def allowed(tx: sqlite3.Connection, wanted: Filter) -> Numbers:
    """The ids (n,) int64, sorted ascending, of the passages whose documents meet every condition of `wanted`.

    Raises:
        InputError: for a malformed condition.
    """
    if len(wanted) > MAX_FIELDS:
        raise InputError(f"The filter has conditions on {len(wanted)} fields; expected at most {MAX_FIELDS}.")
    conditions, values = ["1"], []
    for name, value in wanted.items():
        _check_unicode(name, name)
        condition, operands = _condition("d.id" if name == "doc_id" else "one.value", name, value)
        conditions.append(condition if name == "doc_id" else HAS_FIELD.format(condition=condition))
        values += operands if name == "doc_id" else [name, *operands]
    query = f"""
        SELECT p.number FROM documents AS d JOIN passages AS p ON p.document = d.number
        WHERE {" AND ".join(conditions)} ORDER BY p.number"""
    return np.array([number for (number,) in tx.execute(query, values)], dtype=np.int64)


def unknown_fields(tx: sqlite3.Connection, names: Iterable[str]) -> list[str]:
    """Those of `names` that are no field of any document."""
    query = "SELECT EXISTS (SELECT 1 FROM documents AS d, json_each(d.metadata) AS field WHERE field.key = ?)"
    return [name for name in names if name != "doc_id" and not tx.execute(query, (name,)).fetchone()[0]]


def _condition(column: str, name: str, value: Any) -> tuple[str, list[Any]]:
    if isinstance(value, dict):
        if not value or not value.keys() <= BOUNDS.keys():
            raise InputError(f"filter on {name!r}: {value!r}; expected {{'gte': …}}, {{'lte': …}} or both.")
        tests, operands = ["1" if name == "doc_id" else NUMBER_OR_TEXT], []
        for key, bound in value.items():
            if isinstance(bound, bool):
                raise InputError(f"filter on {name!r}: {bound!r} as a bound; expected a string or a number.")
            test, bounds = _bound(column, BOUNDS[key], _scalar(name, bound))
            tests.append(test)
            operands += bounds
        return " AND ".join(tests), operands
    values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    values = [_scalar(name, one) for one in values]
    if name == "doc_id":
        return f"{column} IN (SELECT value FROM json_each(?))", [json.dumps(values)]
    condition = f"""CASE WHEN {NUMBER_OR_TEXT} THEN {column} IN (SELECT value FROM json_each(?))
                    ELSE {column} IN (SELECT value FROM json_each(?)) END"""
    booleans = [one for one in values if isinstance(one, bool)]
    return condition, [json.dumps([one for one in values if not isinstance(one, bool)]), json.dumps(booleans)]


def _bound(column: str, sign: str, bound: str | int | float) -> tuple[str, list[Any]]:
    """A comparison of numbers with a number, of texts with a text, and of dates with a year, a month or a day."""
    text = str(bound)
    # SQLite sorts all numbers before all texts, so the types are compared first.
    same_type = f"typeof({column}) {'=' if isinstance(bound, str) else '<>'} 'text'"
    test, operands = f"({same_type} AND {column} {sign} ?)", [bound]
    if not DATE.fullmatch(text):
        return test, operands
    # As much of a date as the bound has is compared: `<= 2024-05` includes all of May.
    dates = f"({column} GLOB '{YEAR}-[0-9][0-9]*' AND substr({column}, 1, ?) {sign} ?)"
    if "-" in text:  # other texts, such as "unknown", are neither before nor after a date
        return f"({dates} OR ({column} GLOB '{YEAR}' AND {test}))", [len(text), text, *operands]
    return f"({test} OR {dates})", [*operands, len(text), text]


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


def parse_filter(words: list[str]) -> Filter:
    """Parse filters given on the command line: `field=value`, `field>=value`, `field<=value`.

    White space around the field and the value is no part of them. A value that is a JSON number, true or false is
    compared as such and, for `=`, also as text. Several values of one field are alternatives.

    Raises:
        InputError: for a malformed filter.
    """
    wanted: Filter = {}
    for word in words:
        match = OPERATOR.fullmatch(word)
        if not match:
            raise InputError(f"filter {word!r}; expected field=value, field>=value or field<=value.")
        name, sign, text = match.groups()
        value = _typed(text)
        if sign == "=":
            values = wanted.setdefault(name, [])
            if not isinstance(values, list):
                raise InputError(f"filter {word!r}: give {name} either values or bounds.")
            values += [text] if value == text else [text, value]
        else:
            bounds = wanted.setdefault(name, {})
            if not isinstance(bounds, dict):
                raise InputError(f"filter {word!r}: give {name} either values or bounds.")
            key = "gte" if sign == ">=" else "lte"
            if key in bounds:
                raise InputError(
                    f"filter {word!r}: {name}{sign}{bounds[key]} is given, too; give one of them."
                )
            bounds[key] = value
    return wanted


def _typed(text: str) -> str | int | float:
    """A number, true or false, if `text` is one that a filter can have; else the text."""
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) and abs(value) < 2**63 else text  # NaN is not less

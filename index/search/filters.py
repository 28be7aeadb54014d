"""Metadata filters, which restrict the passages that a search returns."""

import json
import re
import sqlite3
from typing import Any

import numpy as np

from gpt_core.common.errors import InputError
from index.store.store import Numbers

# field → one value | alternative values | {"gte": …, "lte": …}
Filter = dict[str, Any]
BOUNDS = {"gte": ">=", "lte": "<="}
MAX_FIELDS = 100  # SQLite limits expressions to a depth of 1000

# A list field matches if any of its values does. Field names are bound parameters, never part of a JSON path.
HAS_FIELD = """EXISTS (
    SELECT 1 FROM json_each(d.metadata) AS field,
        json_each(CASE field.type WHEN 'array' THEN field.value ELSE json_array(field.value) END) AS one
    WHERE field.key = ? AND {condition})"""


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


def _condition(column: str, name: str, value: Any) -> tuple[str, list[Any]]:
    if isinstance(value, dict):
        if not value or not value.keys() <= BOUNDS.keys():
            raise InputError(f"filter on {name!r}: {value!r}; expected {{'gte': …}}, {{'lte': …}} or both.")
        bounds = [(BOUNDS[key], _scalar(name, bound)) for key, bound in value.items()]
        # SQLite sorts all numbers before all texts, so the types are compared first.
        tests = [
            f"typeof({column}) {'=' if isinstance(bound, str) else '<>'} 'text' AND {column} {sign} ?"
            for sign, bound in bounds
        ]
        return " AND ".join(tests), [bound for _, bound in bounds]
    values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
    encoded = json.dumps([_scalar(name, one) for one in values])
    return f"{column} IN (SELECT value FROM json_each(?))", [encoded]


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

    A value that is a JSON number, true or false is compared as such and, for `=`, also as text. Several values of one
    field are alternatives.

    Raises:
        InputError: for a malformed filter.
    """
    wanted: Filter = {}
    for word in words:
        match = re.fullmatch(r"(?s)([^<>=]+)(>=|<=|=)(.*)", word)
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
            bounds["gte" if sign == ">=" else "lte"] = value
    return wanted


def _typed(text: str) -> str | int | float:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return value if isinstance(value, int | float) else text

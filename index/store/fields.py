"""The index over metadata, for filters: a row for each value of each field of each document.

A field inside an object has the name of its path, such as author.name. Its values are those that a filter can compare:
those of a list one by one, none of an object.
"""

import json
import sqlite3
from collections.abc import Iterator
from enum import IntEnum
from typing import Any

from index.store.schema import FIELDS

LONGEST = 200  # characters; the index would have long texts another time


class Kind(IntEnum):
    """What a row of the index says about a field of a document; `value` is 0 unless it has one."""

    VALUE = 0  # a number or a text
    BOOLEAN = 1
    LONG = 2  # the field has a text that is not in the index
    EMPTY = 3  # the field has no value that a filter can compare
    NULL = 4  # the field is null


Row = tuple[str, int, Any]  # a field's name, the kind, the value


def field_rows(metadata: dict[str, Any]) -> list[Row]:
    """The rows of a document, without duplicates."""
    rows: list[Row] = []
    fields = [(name, value, _is_key(name)) for name, value in metadata.items()]
    while fields:
        name, value, is_path = fields.pop()
        if value is None:
            rows.append((name, Kind.NULL, 0))
            continue
        values = value if isinstance(value, list) else [value]
        found = [_row(name, one) for one in values if one is not None and not isinstance(one, dict | list)]
        rows += found or [(name, Kind.EMPTY, 0)]
        if isinstance(value, dict) and is_path:
            fields += [(f"{name}.{key}", inner, True) for key, inner in value.items() if _is_key(key)]
    return list(dict.fromkeys(rows))


def _row(name: str, value: str | int | float | bool) -> Row:
    if isinstance(value, bool):
        return name, Kind.BOOLEAN, int(value)
    if isinstance(value, str) and len(value) > LONGEST:
        return name, Kind.LONG, 0
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        value = float(str(value))  # as SQLite reads it
    return name, Kind.VALUE, value


def _is_key(name: str) -> bool:
    """Whether a path can have this key."""
    return "." not in name and '"' not in name


def add_fields(tx: sqlite3.Connection, document: int, metadata: str) -> None:
    """Write the rows of a document's metadata (JSON)."""
    rows = field_rows(json.loads(metadata))
    numbers = {name: field_number(tx, name) for name, _, _ in rows}
    for name, number in numbers.items():
        if number is None:
            numbers[name] = tx.execute("INSERT INTO field_names (name) VALUES (?)", (name,)).lastrowid
    values = [(numbers[name], kind, value, document) for name, kind, value in rows]
    tx.executemany("INSERT OR IGNORE INTO fields VALUES (?, ?, ?, ?)", values)


def remove_fields(tx: sqlite3.Connection, document: int, metadata: str) -> None:
    """Delete the rows of a document, which `add_fields` wrote for the same metadata."""
    delete = "DELETE FROM fields WHERE field = ? AND kind = ? AND value = ? AND document = ?"
    rows = field_rows(json.loads(metadata))
    tx.executemany(delete, [(field_number(tx, name), kind, value, document) for name, kind, value in rows])


def rewrite_fields(tx: sqlite3.Connection) -> None:
    """Write the index anew, from all documents; those whose metadata are not JSON get no rows."""
    for table in ("fields", "field_names"):
        tx.execute(f"DROP TABLE IF EXISTS {table}")
    for statement in FIELDS:
        tx.execute(statement)
    for document, metadata in tx.execute("SELECT number, metadata FROM documents WHERE json_valid(metadata)"):
        add_fields(tx, document, metadata)


def stored_rows(tx: sqlite3.Connection) -> Iterator[tuple[int, Row]]:
    """All rows, each with the number of its document."""
    query = "SELECT f.document, n.name, f.kind, f.value FROM fields AS f JOIN field_names AS n ON n.number = f.field"
    for document, *row in tx.execute(query):
        yield document, tuple(row)


def field_number(tx: sqlite3.Connection, name: str) -> int | None:
    """The number of a field; None if no document has it."""
    found = tx.execute("SELECT number FROM field_names WHERE name = ?", (name,)).fetchone()
    return found[0] if found else None

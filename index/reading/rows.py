"""Documents from the rows of files: JSON lines, and the tables of CSV files and spreadsheets."""

import json
import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL, read_rows
from gpt_core.common.list_files import has_ending
from index.reading.document import Document
from index.reading.formats.dataset import read_dataset
from index.reading.formats.extracted import reading
from index.reading.formats.stdin import open_stdin
from index.reading.formats.tables import Sheet, read_tables, table
from index.reading.log import ReadingLog
from index.reading.source_files import STDIN, SourceFile, is_stream

HASH_DIGITS = (
    16  # of the content hash in an id; two of a million lines have the same with a probability of 3e-8
)
# A number as JSON writes it; others, such as 007 or the version 3.10, are text.
NUMBER = re.compile(r"-?(?:0|[1-9]\d{0,14})(?:\.(?:\d{0,14}[1-9]|0))?")
TEXT_COLUMNS = ("_id", "id", "title", "text")


def read_rows_of(
    file: SourceFile, name: str, log: ReadingLog, rows_per_document: int
) -> Iterator[tuple[str, Document]]:
    """Yield the documents of a file of rows, each with its file and line number for error messages.

    A row without an id is named by its content, `<name>:<hash>`, so that its id does not depend on the rows before it.
    Equal rows without ids are one document; the others are counted in `log`.

    Args:
        file: a file of JSON lines or a table.
        name: begins the ids of rows that have none.
        log: notes rows that are left out.
        rows_per_document: rows of a table that are one document, unless it has a column `text`.
    """
    hashes: set[str] = set()
    found = (
        _of_lines(file, name)
        if file.source == STDIN or has_ending(file.path, JSONL)
        else _of_tables(file, name, log, rows_per_document)
    )
    for place, has_id, document in found:
        if not has_id:
            if document.hash in hashes:
                log.repeated += 1
                continue
            hashes.add(document.hash)
            document = replace(document, id=f"{name}:{document.hash[:HASH_DIGITS]}")
        yield place, document


# The following functions yield the place for messages, whether the row has an id, and the document.


def _of_lines(file: SourceFile, name: str) -> Iterator[tuple[str, bool, Document]]:
    for place, row in read_rows(file.path, open_stdin() if file.source == STDIN else None):
        yield place, _has_id(row), _document(row, place, name, file.source)


def _of_tables(file: SourceFile, name: str, log: ReadingLog, n: int) -> Iterator[tuple[str, bool, Document]]:
    if is_stream(file.source):
        yield from _of_dataset(file, name, n)
        return
    with reading(file.path):
        sheets, encoding = read_tables(file.path, lambda line: log.note_unclosed(file.path, line))
        log.note_encoding(file.path, encoding)
        for sheet in sheets:
            place = f"{file.path}, sheet {sheet.name}" if sheet.name else str(file.path)
            for has_id, document in _of_sheet(sheet, place, name, file.source, n):
                yield place, has_id, document


def _of_dataset(file: SourceFile, name: str, n: int) -> Iterator[tuple[str, bool, Document]]:
    for sheet in read_dataset(file.source):
        for has_id, document in _of_sheet(sheet, str(file.path), name, file.source, n):
            yield str(file.path), has_id, document


def _of_sheet(sheet: Sheet, place: str, name: str, source: str, n: int) -> Iterator[tuple[bool, Document]]:
    title = " › ".join(filter(None, (Path(source).stem, sheet.name)))
    metadata = {"sheet": sheet.name} if sheet.name else {}
    while rows := list(islice(sheet.rows, n)):
        if isinstance(rows[0].get("text"), str):
            for row in rows:
                yield _has_id(row), _document(_typed(row), place, name, source)
        elif n == 1:
            text = "\n".join(f"{column}: {value}" for column, value in rows[0].items())
            yield False, _made(place, name, text, title, metadata | _typed(rows[0]), source)
        else:
            columns = list(dict.fromkeys(column for row in rows for column in row))
            cells = [[str(row.get(column, "")) for column in columns] for row in rows]
            yield False, _made(place, name, table([columns, *cells]), title, metadata, source)


def _typed(row: dict[str, Any]) -> dict[str, Any]:
    """The row with numbers in place of their texts, except in the columns that are text in a document."""
    return {
        column: json.loads(value)
        if isinstance(value, str) and NUMBER.fullmatch(value) and column not in TEXT_COLUMNS
        else value
        for column, value in row.items()
    }


def _has_id(row: dict[str, Any]) -> bool:
    return "_id" in row or "id" in row


def _document(row: dict[str, Any], place: str, default_id: str, source: str) -> Document:
    """The document of a row with BEIR's keys."""
    if not isinstance(row.get("text"), str):
        raise InputError(f'{place}: expected a JSON object whose key "text" is a string.')
    name = row.pop("_id" if "_id" in row else "id", default_id)
    title, metadata = row.pop("title", None) or "", row.pop("metadata", None) or {}
    if not isinstance(metadata, dict) or not isinstance(name, str | int):
        raise InputError(
            f"{place}: expected metadata to be an object, and the id to be a string or an integer."
        )
    return _made(place, str(name), row.pop("text"), title, {**row, **metadata}, source)


def _made(place: str, name: str, text: str, title: Any, metadata: dict[str, Any], source: str) -> Document:
    try:
        return Document(name, text, title, metadata, source)
    except InputError as error:
        raise InputError(f"{place}: {error}") from None

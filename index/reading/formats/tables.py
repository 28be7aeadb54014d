"""Rows of tables: CSV, TSV, Parquet, and the sheets of XLSX, XLS, XLSB and ODS."""

import csv
import datetime
import io
import math
import re
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from gpt_core.common.extras import extra
from gpt_core.common.list_files import has_ending
from index.reading.formats.archive import open_zip
from index.reading.formats.encoding import decode
from index.reading.formats.extracted import Unreadable
from index.reading.worker import in_worker

CSV = (".csv", ".tsv")
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
TABLES = (*CSV, *SPREADSHEETS, ".parquet")
ZIPPED = (".xlsx", ".xlsm", ".xlsb", ".ods")
MOST_CELLS = 50_000_000  # of a sheet, empty ones included
DELIMITERS = ",;\t|"
SEPARATOR = re.compile(r"\"?sep=(.)\"?\s*", re.IGNORECASE)
QUOTED = re.compile(r'"(?:[^"]|"")*"')
MAX_FIELD = 1 << 28  # characters; bounds the field of a quote that is never closed


class Sheet(NamedTuple):
    """A table: its name, "" if it has none, and its rows, each with its values by column; empty cells are left out."""

    name: str
    rows: Iterator[dict[str, Any]]


def read_tables(path: Path, note_unclosed: Callable[[int], None]) -> tuple[list[Sheet], str]:
    """The tables of a file, and its encoding, "" of a format that has none.

    Args:
        path: the file.
        note_unclosed: called at the end of a CSV file that ends within quotation marks, with the number of the line
            on which the row begins that has the rest of the file.

    Raises:
        Unreadable: if it is damaged, encrypted or not text.
    """
    if has_ending(path, CSV):
        return _read_csv(path, note_unclosed)
    return (_read_spreadsheet(path) if has_ending(path, SPREADSHEETS) else _read_parquet(path)), ""


def _read_parquet(path: Path) -> list[Sheet]:
    with extra("train"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise Unreadable(f"it is damaged, or no Parquet file ({error}).") from None

    def rows() -> Iterator[dict[str, Any]]:
        for batch in file.iter_batches(1024):
            yield from values(batch)

    return [Sheet("", rows())]


def values(batch: Any) -> Iterator[dict[str, Any]]:
    """The rows of a table or a batch of pyarrow."""
    for row in batch.to_pylist():
        yield {name: _value(cell) for name, cell in row.items() if cell is not None}


def _read_spreadsheet(path: Path) -> list[Sheet]:
    return [Sheet(name, _rows(rows)) for name, rows in in_worker(_sheets, path)]


def _sheets(path: Path) -> list[tuple[str, list[list[Any]]]]:
    """The names of the sheets, and the values of their cells."""
    with extra("documents"):
        from python_calamine import CalamineError, CalamineWorkbook
    if has_ending(path, ZIPPED):
        with open_zip(path):
            pass
    try:
        book = CalamineWorkbook.from_path(str(path))
        found = []
        for name in book.sheet_names:
            sheet = book.get_sheet_by_name(name)
            if sheet.total_height * sheet.total_width > MOST_CELLS:
                raise Unreadable(
                    f"its sheet {name} has {sheet.total_height:,} rows and {sheet.total_width:,} columns; the most is "
                    f"{MOST_CELLS:,} cells."
                )
            found.append((name, [[_value(cell) for cell in row] for row in sheet.to_python()]))
    except (CalamineError, OSError, ValueError) as error:
        if isinstance(error, Unreadable):
            raise
        raise Unreadable(f"it is no spreadsheet, damaged, or encrypted ({error}).") from None
    return found


def _read_csv(path: Path, note_unclosed: Callable[[int], None]) -> tuple[list[Sheet], str]:
    text, encoding = decode(path.read_bytes())
    csv.field_size_limit(MAX_FIELD)
    before, text = text, text.lstrip("\r\n")
    n_before = before[: len(before) - len(text)].count("\n")
    first = text.partition("\n")[0]
    delimiter = "\t" if has_ending(path, (".tsv",)) else _delimiter(first)
    if match := SEPARATOR.fullmatch(first):  # Excel's own line
        delimiter, text, n_before = match[1], text[len(first) + 1 :], n_before + 1
    rows = _csv_rows(text, delimiter, lambda line: note_unclosed(n_before + line))
    return [Sheet("", _rows(rows))], encoding


def _csv_rows(text: str, delimiter: str, note_unclosed: Callable[[int], None]) -> Iterator[list[str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    begin = end = 0  # lines before and up to the last row
    for row in reader:
        begin, end = end, reader.line_num
        yield row
    last = islice(io.StringIO(text, newline=""), begin, None)
    try:
        list(csv.reader(last, delimiter=delimiter, strict=True))
    except csv.Error as error:
        if str(error) == "unexpected end of data":
            note_unclosed(begin + 1)


def _delimiter(line: str) -> str:
    """The delimiter that a line has most often outside of quotation marks."""
    outside = QUOTED.sub("", line)
    return max(DELIMITERS, key=outside.count)


def _rows(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows below the first, which names the columns; those without a name, or with one twice, get a number."""
    names: list[str] | None = None
    try:
        for row in rows:
            if not any(str(cell).strip() for cell in row):
                continue
            if names is None:
                names = []
                for cell in row:
                    names.append(_new_name(str(cell).strip(), names))
                continue
            while len(names) < len(row):
                names.append(_new_name("", names))
            yield {name: cell for name, cell in zip(names, row, strict=False) if str(cell).strip()}
    except csv.Error as error:
        raise Unreadable(f"it is no table ({error}).") from None


def _new_name(name: str, taken: list[str]) -> str:
    if name and name not in taken:
        return name
    number = len(taken) + 1
    name = f"{name} {number}" if name else f"column {number}"
    return name if name not in taken else f"{name} ({number})"


def _value(cell: Any) -> Any:
    """A cell's value as JSON has it: whole numbers as such, dates in ISO format."""
    if isinstance(cell, float) and (cell.is_integer() or not math.isfinite(cell)):
        return int(cell) if math.isfinite(cell) else str(cell)
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        return cell.isoformat()
    return cell if isinstance(cell, str | int | float | list | dict) else str(cell)


def table(rows: list[list[str]]) -> str:
    """A table in Markdown, whose first row has the names of the columns."""
    lines = [
        "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in row) + " |"
        for row in rows
        if any(row)
    ]
    if len(lines) > 1:
        lines.insert(1, "|" + " --- |" * max(len(rows[0]), 1))
    return "\n".join(lines)

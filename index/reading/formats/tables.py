"""Rows of tables: CSV, TSV, Parquet, and the sheets of XLSX, XLS, XLSB and ODS."""

import csv
import datetime
import io
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gpt_core.common.extras import extra
from gpt_core.common.list_files import has_ending
from index.reading.formats.encoding import decode
from index.reading.formats.extracted import Unreadable

CSV = (".csv", ".tsv")
SPREADSHEETS = (".xlsx", ".xlsm", ".xls", ".xlsb", ".ods")
TABLES = (*CSV, *SPREADSHEETS, ".parquet")
DELIMITERS = ",;\t|"
MAX_FIELD = 1 << 28  # characters; bounds the field of a quote that is never closed


class Sheet(NamedTuple):
    """A table: its name, "" if it has none, and its rows, each with its values by column; empty cells are left out."""

    name: str
    rows: Iterator[dict[str, Any]]


def read_tables(path: Path) -> tuple[list[Sheet], str]:
    """The tables of a file, and its encoding, "" of a format that has none.

    Raises:
        Unreadable: if it is damaged, encrypted or not text.
    """
    if has_ending(path, CSV):
        return _read_csv(path)
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
            for row in batch.to_pylist():
                yield {name: _value(cell) for name, cell in row.items() if cell is not None}

    return [Sheet("", rows())]


def _read_spreadsheet(path: Path) -> list[Sheet]:
    with extra("documents"):
        from python_calamine import CalamineError, CalamineWorkbook
    try:
        book = CalamineWorkbook.from_path(str(path))
        sheets = [(name, book.get_sheet_by_name(name).to_python()) for name in book.sheet_names]
    except (CalamineError, OSError, ValueError) as error:
        raise Unreadable(f"it is no spreadsheet, damaged, or encrypted ({error}).") from None
    return [Sheet(name, _rows([[_value(cell) for cell in row] for row in rows])) for name, rows in sheets]


def _read_csv(path: Path) -> tuple[list[Sheet], str]:
    text, encoding = decode(path.read_bytes())
    csv.field_size_limit(MAX_FIELD)
    delimiter = "\t" if path.name.lower().endswith(".tsv") else _delimiter(text)
    return [Sheet("", _rows(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)))], encoding


def _delimiter(text: str) -> str:
    """The delimiter that the first line has most often."""
    first = text.partition("\n")[0]
    return max(DELIMITERS, key=first.count)


def _rows(rows: Any) -> Iterator[dict[str, Any]]:
    """The rows below the first, which names the columns; columns without a name are named by their number."""
    names: list[str] | None = None
    try:
        for row in rows:
            if not any(str(cell).strip() for cell in row):
                continue
            if names is None:
                names = [str(cell).strip() or f"column {i}" for i, cell in enumerate(row, 1)]
                continue
            names += [f"column {i + 1}" for i in range(len(names), len(row))]
            yield {name: cell for name, cell in zip(names, row, strict=False) if str(cell).strip()}
    except csv.Error as error:
        raise Unreadable(f"it is no table ({error}).") from None


def _value(cell: Any) -> Any:
    """A cell's value as JSON has it: whole numbers as such, dates in ISO format."""
    if isinstance(cell, float) and (cell.is_integer() or not math.isfinite(cell)):
        return int(cell) if math.isfinite(cell) else str(cell)
    if isinstance(cell, datetime.datetime | datetime.date | datetime.time):
        return cell.isoformat()
    return cell if isinstance(cell, str | int | float | list | dict) else str(cell)

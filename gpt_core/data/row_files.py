"""Files in which each row is a document: JSON lines, CSV, Parquet.

Each reader skips the first `skip` rows and yields for every further row its location for messages, its text, and the
number of bytes of the file read so far. In place of the text of a row that cannot be used, it yields the InputError
that says why. A fault after which the following rows cannot be found either is raised as an InputError.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import parse_object, read_lines
from gpt_core.data.text_pieces import scan_utf8

Row = tuple[str, str | InputError, int]  # location, text, bytes read
TYPES = {
    bool: "a boolean",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}  # in messages
UNDECODED = re.compile("[\udc80-\udcff]")  # bytes that are not UTF-8, as "surrogateescape" decodes them
MAX_CSV_FIELD = 2**28  # characters; bounds the field of a quote that is never closed


def read_jsonl(path: Path, column: str, skip: int) -> Iterator[Row]:
    """Read JSON lines; each row is an object with a string, or null for an empty document, under `column`."""
    with open(path, "rb") as raw:
        for place, line in read_lines(path, skip=skip, raw=raw):
            yield place, _text_of(place, line, column), raw.tell()


def _text_of(place: str, line: bytes, column: str) -> str | InputError:
    try:
        row = parse_object(line, place)
    except InputError as error:
        return error
    return text_of(place, row, column)


def read_csv(path: Path, column: str, skip: int) -> Iterator[Row]:
    """Read CSV; the first line names the columns."""
    csv.field_size_limit(MAX_CSV_FIELD)
    with open(path, "rb") as raw:
        rows = csv.reader(io.TextIOWrapper(raw, "utf-8-sig", "surrogateescape", ""), strict=True)
        begin = 1  # first line of the row
        try:
            names = next(rows, None)
            if names is None:
                return
            if column not in names:
                scan_utf8(path)  # raises if the file is in another encoding
                raise InputError(no_column(path, column, names) + " The first line must name the columns.")
            index = names.index(column)
            begin = rows.line_num + 1
            for row in rows:
                place, begin = f"{path}, line {begin}", rows.line_num + 1
                if not row:
                    continue
                if skip:
                    skip -= 1
                    continue
                yield place, _csv_text(place, row, index, len(names)), raw.tell()
        except csv.Error as error:
            raise InputError(f"{path}, line {begin}: {error}; is a quote not closed?") from None


def _csv_text(place: str, row: list[str], index: int, n_columns: int) -> str | InputError:
    if len(row) != n_columns:
        return InputError(f"{place}: expected {n_columns} fields as in the first line, not {len(row)}.")
    if UNDECODED.search(row[index]):
        return InputError(f"{place}: the text is not UTF-8; convert the file to UTF-8 first.")
    return row[index]


def read_parquet(path: Path, column: str, skip: int) -> Iterator[Row]:
    """Read Parquet in batches of 64 rows, not in whole row groups, to bound memory."""
    with extra("train"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    size = path.stat().st_size
    try:
        # without a buffer, the column of a whole row group would be read at once
        with pq.ParquetFile(path, buffer_size=2**20, pre_buffer=False) as file:
            if column not in (names := file.schema_arrow.names):
                raise InputError(no_column(path, column, names))
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            first = row = 0
            while first < len(counts) and row + counts[first] <= skip:
                row += counts[first]
                first += 1
            groups = list(range(first, len(counts)))
            for batch in file.iter_batches(64, row_groups=groups, columns=[column], use_threads=False):
                for value in batch.column(0):
                    row += 1
                    if row > skip:
                        place = f"{path}, row {row}"
                        yield (
                            place,
                            text_of(place, {column: value.as_py()}, column),
                            size * row // sum(counts),
                        )
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged, or no Parquet file: {reason}") from None


def text_of(place: str, row: dict[str, Any], column: str) -> str | InputError:
    """The text of a row: the string under `column`, or "" for None; else the InputError that names what is there."""
    if column not in row:
        return InputError(no_column(place, column, list(row)))
    value = row[column]
    if value is not None and not isinstance(value, str):
        found = TYPES.get(type(value), type(value).__name__)
        return InputError(
            f'{place}: expected a string under "{column}", not {found}; name the text column with --column.'
        )
    return value or ""


def no_column(place: str | Path, column: str, names: list[str]) -> str:
    """Error message for a missing column where the columns `names` exist."""
    return f'{place} has no column "{column}"; it has {_names(names)}. Name the text column with --column.'


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"

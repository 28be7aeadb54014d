"""Files of which each row is a document: JSON lines, CSV, Parquet.

Each reader passes over the first `skip` rows and yields of every other one its place for messages, its text, and how
many bytes of the file have been read by then. What cannot be read is an InputError that names the place.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import read_rows
from gpt_core.data.text_pieces import survey

CSV_FIELD = 2**28  # characters; a quote that is never closed would take the whole file for one field


def read_jsonl(path: Path, column: str, skip: int) -> Iterator[tuple[str, str, int]]:
    """A row of JSON lines is an object with a string under `column`."""
    with open(path, "rb") as raw:
        for place, row in read_rows(path, skip=skip, raw=raw):
            if not isinstance(text := row.get(column), str):
                raise InputError(
                    f'{place}: expected an object with a string under "{column}"; it has {_names(list(row))}. '
                    "Name the key with --column."
                )
            del row  # which may be long, and is not needed while the text is worked on
            yield place, text, raw.tell()


def read_csv(path: Path, column: str, skip: int) -> Iterator[tuple[str, str, int]]:
    """The first line of a CSV file names the columns."""
    csv.field_size_limit(CSV_FIELD)
    with open(path, "rb") as raw:
        rows = csv.reader(io.TextIOWrapper(raw, "utf-8-sig", newline=""), strict=True)
        begin = 1  # the line at which a row begins
        try:
            names = next(rows, None)
            if names is None:
                return
            if column not in names:
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
                if len(row) != len(names):
                    raise InputError(
                        f"{place}: expected {len(names)} fields as in the first line, not {len(row)}."
                    )
                yield place, row[index], raw.tell()
        except csv.Error as error:
            raise InputError(f"{path}, line {begin}: {error}; is a quote not closed?") from None
        except UnicodeDecodeError:
            survey(path)  # says at which byte
            raise


def read_parquet(path: Path, column: str, skip: int) -> Iterator[tuple[str, str, int]]:
    """Parquet is read by batches of rows, not by whole groups of them."""
    with extra("train"):
        import pyarrow as pa
        import pyarrow.parquet as pq
    size = path.stat().st_size
    try:
        # a buffer, or a column of a whole group of rows would be read at once
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
                        yield place, as_string(place, value.as_py()), size * row // sum(counts)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged, or no Parquet file: {reason}") from None


def as_string(place: str, value: Any) -> str:
    """`value`, if it is a text.

    Raises:
        InputError: if it is something else.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(f"{place}: expected a string, not {type(value).__name__}; name the text's --column.")
    return value or ""  # None is Parquet's way to say that there is no text


def no_column(place: str | Path, column: str, names: list[str]) -> str:
    """What to say where the column is missing and `names` are there."""
    return (
        f'{place} has no column "{column}"; it has {_names(names)}. Name the one with the text by --column.'
    )


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"

"""Files in which each row is a document: JSON lines, CSV, Parquet.

Each reader skips the first `skip` rows and yields for every further row its location for messages, its text, and the
number of bytes of the file read so far. A row that cannot be read raises an InputError that names its location.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import read_rows
from gpt_core.data.text_pieces import scan_utf8

MAX_CSV_FIELD = 2**28  # characters; bounds the field of a quote that is never closed


def read_jsonl(path: Path, column: str, skip: int) -> Iterator[tuple[str, str, int]]:
    """Read JSON lines; each row is an object with a string under `column`."""
    with open(path, "rb") as raw:
        for place, row in read_rows(path, skip=skip, raw=raw):
            if not isinstance(text := row.get(column), str):
                raise InputError(
                    f'{place}: expected an object with a string under "{column}"; it has {_names(list(row))}. '
                    "Name the key with --column."
                )
            del row  # frees a long row while the text is encoded
            yield place, text, raw.tell()


def read_csv(path: Path, column: str, skip: int) -> Iterator[tuple[str, str, int]]:
    """Read CSV; the first line names the columns."""
    csv.field_size_limit(MAX_CSV_FIELD)
    with open(path, "rb") as raw:
        rows = csv.reader(io.TextIOWrapper(raw, "utf-8-sig", newline=""), strict=True)
        begin = 1  # first line of the row
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
            scan_utf8(path)  # raises an InputError that names the byte
            raise


def read_parquet(path: Path, column: str, skip: int) -> Iterator[tuple[str, str, int]]:
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
                        yield place, as_string(place, value.as_py()), size * row // sum(counts)
    except (pa.ArrowException, OSError) as error:
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} is damaged, or no Parquet file: {reason}") from None


def as_string(place: str, value: Any) -> str:
    """`value` if it is a string, "" if it is None.

    Raises:
        InputError: if it has another type.
    """
    if value is not None and not isinstance(value, str):
        raise InputError(
            f"{place}: expected a string, not {type(value).__name__}; name the text column with --column."
        )
    return value or ""  # None: a Parquet null


def no_column(place: str | Path, column: str, names: list[str]) -> str:
    """Error message for a missing column where the columns `names` exist."""
    return f'{place} has no column "{column}"; it has {_names(names)}. Name the text column with --column.'


def _names(names: list[str]) -> str:
    shown = ", ".join(repr(name[:40]) for name in names[:8])
    return shown + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "none"

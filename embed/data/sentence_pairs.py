"""Files of sentence pairs with human scores, such as STS-B's."""

import csv
import gzip
import lzma
import math
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL, read_rows
from gpt_core.common.list_files import has_ending

FIELDS = ("sentence1", "sentence2", "score")
CSV, TSV = (tuple(kind + packed for packed in ("", ".gz", ".xz")) for kind in (".csv", ".tsv"))
TABLES = CSV + TSV


@dataclass(frozen=True)
class SentencePairs:
    """Sentence pairs with human scores: three columns of equal length."""

    name: str
    first: list[str]
    second: list[str]
    scores: NDArray[np.float64]

    @classmethod
    def load(cls, path: str | Path) -> "SentencePairs":
        """Read a file of sentence1, sentence2 and score.

        Raises:
            InputError: for a missing file, an unknown file type, a missing column (the message lists the existing
                ones), a score that is not a finite number, equal scores only, or fewer than two pairs.
        """
        path = Path(path)
        rows = [(place, [row.get(key) for key in FIELDS]) for place, row in _read(path)]
        for place, (first, second, score) in rows:
            if not isinstance(first, str) or not isinstance(second, str):
                raise InputError(f"{place}: expected sentence1 and sentence2, both strings.")
            if not _is_number(score):
                raise InputError(f"{place}: score is {score!r}; expected a number.")
        if len(rows) < 2:
            raise InputError(f"{path} has {len(rows)} sentence pairs; expected at least two.")
        if len({float(score) for _, (_, _, score) in rows if score is not None}) < 2:
            raise InputError(
                f"{path}: all scores are {rows[0][1][2]}; expected different scores: a correlation needs variance."
            )
        first, second, scores = (list(column) for column in zip(*(values for _, values in rows), strict=True))
        return cls(path.name.split(".")[0], first, second, np.array(scores, dtype=np.float64))

    @property
    def texts(self) -> list[str]:
        """All first sentences, then all second ones."""
        return [*self.first, *self.second]


def _is_number(value: Any) -> bool:
    try:
        return not isinstance(value, bool) and math.isfinite(float(value))
    except (TypeError, ValueError):
        return False


def _read(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file of any supported format, each with its location for messages."""
    if not path.is_file():
        raise InputError(f"{path} does not exist; expected a file of sentence1, sentence2 and score.")
    if has_ending(path, JSONL):
        yield from read_rows(path)
        return
    if not has_ending(path, TABLES):
        raise InputError(
            f"{path} has an unknown file type; expected .csv, .tsv or .jsonl, optionally with .gz or .xz."
        )
    # In tab-separated files, quotation marks belong to the sentence and do not quote a field.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if has_ending(path, TSV) else {}
    opened: Any = {".gz": gzip.open, ".xz": lzma.open}.get(path.suffix.lower(), open)
    try:
        with opened(path, "rt", encoding="utf-8-sig", newline="") as lines:
            reader = csv.DictReader(lines, **dialect)
            if missing := [field for field in FIELDS if field not in (reader.fieldnames or ())]:
                raise InputError(
                    f"{path} has no column {missing[0]}; its columns are {', '.join(reader.fieldnames or ['none'])}."
                )
            for row in reader:
                yield f"{path}, line {reader.line_num}", row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason}; save it as UTF-8.") from None
    except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError, csv.Error) as error:
        raise InputError(f"{path} is damaged or not a table of sentences: {error}.") from None

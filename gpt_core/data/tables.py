"""Rows with named columns: of files of JSON lines, CSV and TSV, and of datasets of the library `datasets`."""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from gpt_core.common.compressed import DAMAGED, open_text
from gpt_core.common.errors import InputError
from gpt_core.common.extras import extra
from gpt_core.common.jsonl import JSONL, read_rows
from gpt_core.common.list_files import has_ending
from gpt_core.data.row_files import MAX_CSV_FIELD
from gpt_core.data.sources import open_builder, unreadable

CSV, TSV = (tuple(kind + packed for packed in ("", ".gz", ".xz")) for kind in (".csv", ".tsv"))
TABLES = JSONL + CSV + TSV

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_MARK = re.compile(r"\(([A-Z])\)\s*")  # of a choice in OpenBookQA's and ARC's tables

Row = tuple[str, dict[str, Any]]  # location for messages, values by column


def read_table(path: Path, columns: Sequence[str] = ()) -> Iterator[Row]:
    """Read the rows of a file; values of CSV and TSV are strings.

    Args:
        path: .jsonl, .csv or .tsv, optionally with .gz or .xz. The first line of CSV and TSV names the columns.
        columns: columns that a CSV or TSV file must have.

    Raises:
        InputError: for a missing or damaged file, an unknown file type, a missing column (the message lists the
            existing ones), a line of JSON that is no object, or a row with too many or too few fields.
    """
    if not path.is_file():
        found = "is a folder" if path.is_dir() else "does not exist"
        raise InputError(f"{str(path)!r} {found}; expected a file of type {', '.join(TABLES)}.")
    if has_ending(path, JSONL):
        yield from read_rows(path)
        return
    if not has_ending(path, TABLES):
        raise InputError(
            f"{path} has an unknown file type; expected .csv, .tsv or .jsonl, optionally with .gz or .xz."
        )
    # In tab-separated files, quotation marks belong to the text and do not quote a field.
    dialect: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE} if has_ending(path, TSV) else {}
    csv.field_size_limit(MAX_CSV_FIELD)
    try:
        with open_text(path, newline="") as lines:
            reader = csv.DictReader(lines, strict=True, **dialect)
            names = reader.fieldnames or ()
            if missing := [column for column in columns if column not in names]:
                raise InputError(
                    f"{path} has no column {missing[0]}; its columns are {', '.join(names or ['none'])}."
                )
            if twice := [name for name in names if list(names).count(name) > 1]:
                raise InputError(
                    f"{path} names the column {twice[0]} twice; give every column a name of its own."
                )
            for row in reader:
                place = f"{path}, line {reader.line_num}"
                if None in row or None in row.values():
                    raise InputError(f"{place}: expected {len(names)} fields as in the first line.")
                yield place, row
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: {error.reason}; save it as UTF-8.") from None
    except (*DAMAGED, csv.Error) as error:
        raise InputError(f"{path} is damaged or not a table: {error}.") from None


def lettered(text: str) -> list[str]:
    """The choices in "(A) … (B) …"; none if their letters do not begin with A or leave one out."""
    marked = _MARK.split(text)[1:]  # letter, choice, letter, choice …
    if "".join(marked[::2]) != LETTERS[: len(marked[::2])]:
        return []
    return [choice.strip() for choice in marked[1::2]]


def dataset_rows(source: str, split: str) -> Iterator[Row]:
    """Rows of a dataset of the library `datasets`, whose cache allows training to resume offline.

    Args:
        source: a name on the Hugging Face hub or a folder, optionally with a colon and a configuration.
        split: the split.

    Raises:
        InputError: as `open_dataset`.
    """
    name, _, config = source.partition(":")
    for number, row in enumerate(open_dataset(name, config or None, split)[split], 1):
        yield f"{source}, row {number}", row


def open_dataset(name: str, config: str | None = None, split: str | None = None) -> dict[str, Any]:
    """The splits of a dataset of the library `datasets`, by name, from its cache or brought into it.

    Args:
        name: a name on the Hugging Face hub, or a folder of files or of the dataset's method `save_to_disk`.
        config: the configuration; None for the only or default one.
        split: the only split to open; None for all.

    Raises:
        InputError: if there is no such data set, configuration or split, or no network.
    """
    if any((Path(name) / file).is_file() for file in ("state.json", "dataset_dict.json")):
        return _saved_dataset(name, config, split)
    builder = open_builder(name, config)
    from datasets.exceptions import DatasetsError  # `open_builder` has imported the library

    try:
        builder.download_and_prepare()
        return {split: builder.as_dataset(split)} if split else builder.as_dataset()
    except (OSError, ValueError, RuntimeError, DatasetsError) as error:
        raise InputError(unreadable(name, error)) from error


def _saved_dataset(folder: str, config: str | None, split: str | None) -> dict[str, Any]:
    with extra("train"):
        import datasets
    try:
        found = datasets.load_from_disk(folder)
    except (OSError, ValueError, RuntimeError) as error:
        raise InputError(unreadable(folder, error)) from error
    splits = found if isinstance(found, dict) else {str(found.split or "train"): found}
    if config or (split and split not in splits):
        what = f"configuration {config}" if config else f"split {split}"
        raise InputError(f"The data set {folder} has no {what}; its splits are {', '.join(splits)}.")
    return {split: splits[split]} if split else splits

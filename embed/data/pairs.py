"""Readers of training data for embedders: queries with positives and negatives."""

import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from embed.data.beir import is_beir, read_beir
from embed.text.key import text_key
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL, read_rows
from gpt_core.common.list_files import has_ending
from gpt_core.data.tables import dataset_rows

# Column names of FlagEmbedding, GritLM and sentence-transformers, in order of preference
QUERY = ("query", "anchor")
POSITIVE = ("positive", "pos")
NEGATIVE = ("negative", "neg")
TEXT = "text"


@dataclass(frozen=True, slots=True)
class Example:
    """A query with its positives and negatives.

    Attributes:
        query: the query; or any text, for distillation from a teacher without pairs.
        positives: texts that answer the query; empty for data of texts without pairs.
        negatives: hard negatives: texts that resemble answers but do not answer the query.
    """

    query: str
    positives: tuple[str, ...] = ()
    negatives: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """The query, the positives and the negatives."""
        return self.query, *self.positives, *self.negatives


@dataclass(frozen=True)
class Columns:
    """Column names; None: the usual names (`QUERY`, `POSITIVE`, `NEGATIVE`) that the data has."""

    query: str | None = None
    positive: str | None = None
    negative: str | None = None


def read_examples(source: str | Path, split: str = "train", columns: Columns = Columns()) -> list[Example]:
    """Read training data and drop unusable rows, whose number is printed to stderr.

    Dropped are pairs with an empty side or two equal sides, and negatives that are empty or equal to the query or one
    of its positives (`text_key`).

    Args:
        source: a JSON lines file (`.gz`, `.xz`); a BEIR folder; or a dataset of the library `datasets`: a name on the
            Hugging Face hub or a folder, optionally with a colon and a configuration, such as
            "sentence-transformers/all-nli:triplet". Rows have a query and one or several positives and negatives
            (strings or lists of strings; also `negative_1`, `negative_2` …), or only a `text`. In a BEIR folder,
            documents judged above 0 are positives, the other judged documents negatives.
        split: split of a BEIR folder or dataset.
        columns: names of the columns.

    Raises:
        InputError: for a source that cannot be read, an invalid line (named by number), a missing column (the message
            lists the existing ones), unknown ids in judgements, or if no usable row is left.
    """
    if not str(source):
        raise InputError("The name of the data is empty; expected a file, a folder or a dataset.")
    path = Path(source)
    examples: Iterable[Example]
    if path.is_dir() and is_beir(path):
        if columns != Columns():
            raise InputError(f"{path} is a BEIR folder, which has no columns; omit the column names.")
        examples = _from_beir(path, split)
    elif path.is_file() or has_ending(path, JSONL):
        if not path.is_file():
            raise InputError(f"{path} does not exist; expected a file of JSON lines with query and positive.")
        if not has_ending(path, JSONL):
            raise InputError(f"{path} has an unknown file type; expected {', '.join(JSONL)} or a folder.")
        examples = (_from_row(place, row, columns) for place, row in read_rows(path))
    else:
        examples = (_from_row(place, row, columns) for place, row in dataset_rows(str(source), split))
    return _drop_unusable(examples, path.name)


def _from_row(place: str, row: dict[str, Any], columns: Columns) -> Example:
    query, positive = _find(row, columns.query, QUERY), _find(row, columns.positive, POSITIVE)
    if query is None and positive is None and columns == Columns() and TEXT in row:
        return Example(_string(place, row, TEXT))
    if query is None:
        raise InputError(_no_column(place, columns.query or " or ".join(QUERY), row))
    if positive is None:
        raise InputError(_no_column(place, columns.positive or " or ".join(POSITIVE), row))
    if columns.negative is not None and columns.negative not in row:
        raise InputError(_no_column(place, columns.negative, row))
    names = [columns.negative] if columns.negative else _negative_columns(row)
    negatives = [negative for name in names for negative in _strings(place, row, name)]
    return Example(_string(place, row, query), tuple(_strings(place, row, positive)), tuple(negatives))


def _find(row: dict[str, Any], asked: str | None, usual: tuple[str, ...]) -> str | None:
    return next((name for name in ([asked] if asked else usual) if name in row), None)


def _negative_columns(row: dict[str, Any]) -> list[str]:
    """The usual columns of negatives, then sentence-transformers' numbered ones in the row's order."""
    numbered = [name for name in row if name.startswith("negative_") and name[9:].isdigit()]
    return [name for name in NEGATIVE if name in row] + numbered


def _string(place: str, row: dict[str, Any], name: str) -> str:
    values = _strings(place, row, name)
    if len(values) != 1:
        raise InputError(f'{place}: expected one string under "{name}", not {len(values)}.')
    return values[0]


def _strings(place: str, row: dict[str, Any], name: str) -> list[str]:
    value = row[name]
    values = value if isinstance(value, list) else [""] if value is None else [value]
    for one in values:
        if not isinstance(one, str):
            raise InputError(
                f'{place}: expected a string or a list of strings under "{name}", not {type(one).__name__}.'
            )
    return values


def _no_column(place: str, wanted: str, row: dict[str, Any]) -> str:
    there = ", ".join(repr(name[:40]) for name in row) or "none"
    return f"{place} has no column {wanted}; it has {there}. Give the column's name, or rename the column."


def _from_beir(folder: Path, split: str) -> Iterator[Example]:
    documents, queries, qrels = read_beir(folder, split)
    for query, grades in qrels.items():
        if max(grades.values()) > 0:  # a query without a positive cannot be trained on
            positives = tuple(documents[d] for d, grade in grades.items() if grade > 0)
            negatives = tuple(documents[d] for d, grade in grades.items() if grade <= 0)
            yield Example(queries[query], positives, negatives)


def _drop_unusable(examples: Iterable[Example], name: str) -> list[Example]:
    """The usable examples; prints the number of dropped pairs and negatives to stderr."""
    usable: list[Example] = []
    n_pairs = 0
    wrong: Counter[str] = Counter()
    wrong_negatives = 0
    for example in examples:
        query = text_key(example.query)
        positives = []
        n_pairs += max(len(example.positives), 1)
        if not example.positives and not query:
            wrong["an empty text"] += 1
        for positive in example.positives:
            if not query or not text_key(positive):
                wrong["an empty side"] += 1
            elif query == text_key(positive):
                wrong["equal sides"] += 1
            else:
                positives.append(positive)
        known = {"", query, *map(text_key, example.positives)}
        negatives = [negative for negative in example.negatives if text_key(negative) not in known]
        wrong_negatives += len(example.negatives) - len(negatives)
        if query and (positives or not example.positives):
            usable.append(Example(example.query, tuple(positives), tuple(negatives)))
    dropped = " and ".join(f"{count:,} with {what}" for what, count in wrong.items())
    if not usable:
        raise InputError(
            f"{name} has no usable training pairs: of {n_pairs:,} pairs, {dropped or 'none'}; give other data."
        )
    if wrong:
        print(f"{name}: {wrong.total():,} of {n_pairs:,} pairs dropped: {dropped}", file=sys.stderr)
    if wrong_negatives:
        reason = "negatives dropped that are empty, or equal to the query or a positive"
        print(f"{name}: {wrong_negatives:,} {reason}", file=sys.stderr)
    return usable

"""Examples of the tasks, from files of rows and from SQuAD's JSON."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeGuard

from gpt_core.common.compressed import DAMAGED, open_text
from gpt_core.common.errors import InputError
from gpt_core.common.list_files import has_ending
from gpt_core.data.tables import LETTERS, TABLES, Row, dataset_rows, lettered, read_table

Task = Literal["classification", "entailment", "similarity", "choice", "span"]
# The fields of a row, its texts first. A row to predict for needs only the texts.
FIELDS: dict[Task, tuple[str, ...]] = {
    "classification": ("text", "label"),
    "entailment": ("premise", "hypothesis", "label"),
    "similarity": ("sentence1", "sentence2", "score"),
    "choice": ("context", "choices", "label"),
    "span": ("question", "context", "answers"),
}
SQUAD = (".json", ".json.gz")

Span = tuple[int, int]  # half-open range of code points


@dataclass(frozen=True, slots=True)
class Example:
    """A row of a task.

    Attributes:
        place: its location, for messages.
        texts: the text; or the premise and the hypothesis; the two sentences; the context and all choices; the question
            and the passage.
        label: classification and entailment: the label; None if unknown.
        number: similarity: the score; choice: the index of the right one; None if unknown.
        spans: span: ranges of the passage that answer the question, all of them right; empty: no answer.
        group: span: name of the article, from which paragraphs without the answer are drawn.
    """

    place: str
    texts: tuple[str, ...]
    label: str | None = None
    number: float | None = None
    spans: tuple[Span, ...] = ()
    group: str = ""

    @property
    def answers(self) -> list[str]:
        """span: the texts of `spans`."""
        return [self.texts[1][start:end] for start, end in self.spans]


def column_names(entries: Sequence[str], task: Task) -> dict[str, str]:
    """Columns by field, from entries "field=column".

    Raises:
        InputError: for an entry of another form, another field, or a field that is named twice.
    """
    names: dict[str, str] = {}
    for entry in entries:
        field, equals, column = entry.partition("=")
        if not equals or not all(_parts(field, column)) or field not in FIELDS[task] or field in names:
            raise InputError(
                f"columns contains {entry!r}; expected field=column, once for a field, where the fields of {task} are "
                f"{', '.join(FIELDS[task])}."
            )
        names[field] = column
    return names


def read_examples(
    source: str, task: Task, columns: Mapping[str, str], labelled: bool = True, split: str = "train"
) -> list[Example]:
    """Read a file or a dataset.

    Args:
        source: .jsonl, .csv or .tsv (.gz, .xz); for span also SQuAD's .json (.gz), 1.1 or 2.0; or a dataset of the
            library `datasets`: a name or folder, optionally with a colon and a configuration.
        task: which fields the rows have (`FIELDS`).
        columns: names of columns that differ from the fields.
        labelled: whether every row must have its label, score or answers.
        split: of a dataset.

    Raises:
        InputError: for a source or a row that cannot be read, naming its place, or a source without rows.
    """
    path = Path(source)
    if task == "span" and has_ending(path, SQUAD):
        if columns:
            raise InputError(f"{path} is SQuAD's JSON, which has no columns; omit columns.")
        examples = list(_read_squad(path))
    else:
        one = {field: columns.get(field, field) for field in FIELDS[task]}
        rows = _rows(source, [name for field in one for name in _parts(field, one[field])], labelled, split)
        examples = [to_example(place, row, task, one, labelled) for place, row in rows]
    if not examples:
        raise InputError(f"{source} has no rows; expected at least one.")
    return examples


def _rows(source: str, columns: Sequence[str], labelled: bool, split: str) -> Iterator[Row]:
    path = Path(source)
    if path.is_file() or has_ending(path, TABLES):
        return read_table(path, columns if labelled else columns[:-1])
    if path.suffix or not source:
        raise InputError(f"{source!r} is no file; expected one of {', '.join(TABLES)}, or a dataset's name.")
    return dataset_rows(source, split)


def to_example(
    place: str, row: Mapping[str, Any], task: Task, columns: Mapping[str, str], labelled: bool
) -> Example:
    """The example in a row; `columns` has the column of every field of the task.

    Raises:
        InputError: for a missing or wrong value, naming its place.
    """
    for column in [c for field in FIELDS[task][:-1] for c in _parts(field, columns[field])]:
        if column not in row:
            raise InputError(f"{place} has no column {column}; it has {_names(row)}.")
    last = columns[FIELDS[task][-1]]  # of the label
    target = row.get(last) if labelled else None
    if target is None and labelled:
        found = f"{last} is null" if last in row else f"there is no {last}, only {_names(row)}"
        raise InputError(f"{place}: {found}; expected a value, or remove the row.")
    if task == "choice":
        choices = _choices(place, row, columns["choices"])
        texts = (_text(place, row, columns["context"]), *choices)
        return Example(place, texts, number=None if target is None else _index(place, target, len(choices)))
    texts = tuple(_text(place, row, columns[field]) for field in FIELDS[task][:-1])
    if task == "span":
        return Example(
            place, texts, spans=() if target is None else _answers(place, texts[1], target), group=_title(row)
        )
    if target is None:
        return Example(place, texts)
    if task == "similarity":
        return Example(place, texts, number=_score(place, target))
    if isinstance(target, bool) or not isinstance(target, str | int) or not str(target).strip():
        raise InputError(f"{place}: {last} is {target!r}; expected a string or a whole number.")
    return Example(place, texts, label=str(target).strip())


def _parts(field: str, column: str) -> list[str]:
    """The columns that a field names; choices may have one each."""
    return column.split("+") if field == "choices" else [column]


def _text(place: str, row: Mapping[str, Any], column: str) -> str:
    if not isinstance(text := row[column], str):
        raise InputError(
            f"{place}: {column} is {str(text)[:40]!r}, of type {type(text).__name__}; expected a string."
        )
    return text


def _choices(place: str, row: Mapping[str, Any], column: str) -> tuple[str, ...]:
    """The choices: a list, a column each, or a string with marks, "(A) … (B) …"."""
    parts = _parts("choices", column)
    value = [row[name] for name in parts] if len(parts) > 1 else row[column]
    if isinstance(value, dict):  # as in ARC: {"text": […], "label": […]}
        value = value.get("text")
    if isinstance(value, str):
        if not (marked := lettered(value)):
            raise InputError(f'{place}: {column} is {value[:80]!r}; expected a list, or "(A) … (B) …".')
        value = marked
    if not isinstance(value, list) or len(value) < 2:
        raise InputError(f"{place}: {column} has no two choices; expected at least two.")
    for number, choice in enumerate(value):
        if not isinstance(choice, str) or not choice.strip():
            raise InputError(f"{place}: choice {number} is {choice!r}; expected a text for every choice.")
    return tuple(value)


def _index(place: str, target: Any, n_choices: int) -> int:
    """The index of the right choice, which may be given as a letter."""
    text = str(target).strip()
    index = int(text) if text.isdecimal() else LETTERS.find(text) if len(text) == 1 else -1
    if isinstance(target, bool) or not 0 <= index < n_choices:
        letters = f", or A to {LETTERS[n_choices - 1]}" if n_choices <= len(LETTERS) else ""
        raise InputError(f"{place}: the label is {target!r}; expected 0 to {n_choices - 1}{letters}.")
    return index


def _score(place: str, target: Any) -> float:
    try:
        score = math.nan if isinstance(target, bool) else float(target)
    except (TypeError, ValueError, OverflowError):
        score = math.nan
    if not math.isfinite(score):
        raise InputError(f"{place}: score is {str(target)[:40]!r}; expected a number.")
    return score


def _answers(place: str, context: str, answers: Any) -> tuple[Span, ...]:
    """Ranges of the answers, given as in the dataset squad: {"text": […], "answer_start": […]}."""
    if isinstance(answers, dict) and isinstance(answers.get("text"), list):
        starts = answers.get("answer_start")
        if isinstance(starts, list) and len(starts) == len(answers["text"]):
            pairs = zip(answers["text"], starts, strict=True)
            return tuple(_span(place, context, text, start) for text, start in pairs)
    raise InputError(
        f'{place}: answers is {str(answers)[:80]!r}; expected {{"text": […], "answer_start": […]}} of equal length.'
    )


def _span(place: str, context: str, text: Any, start: Any) -> Span:
    if not isinstance(text, str) or not text.strip() or not _is_whole(start):
        raise InputError(f"{place}: the answer {text!r} at {start!r}; expected a text and its offset.")
    if context[start : start + len(text)] != text:
        raise InputError(
            f"{place}: the answer {text!r} does not stand at offset {start} of its context, where "
            f"{context[start : start + len(text)]!r} stands; offsets count characters from 0."
        )
    return start, start + len(text)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _title(row: Mapping[str, Any]) -> str:
    return str(row.get("title") or "")


def _read_squad(path: Path) -> Iterator[Example]:
    try:
        with open_text(path) as file:
            articles = json.load(file)["data"]
        for article in articles:
            for paragraph in article["paragraphs"]:
                for qa in paragraph["qas"]:
                    place = f"{path}, question {qa['id']}"
                    question, context = _text(place, qa, "question"), _text(place, paragraph, "context")
                    given = [] if qa.get("is_impossible") else qa["answers"]
                    spans = tuple(_span(place, context, a["text"], a["answer_start"]) for a in given)
                    yield Example(place, (question, context), spans=spans, group=str(article["title"]))
    except (FileNotFoundError, IsADirectoryError):
        raise InputError(f"{path} is no file; expected SQuAD's JSON.") from None
    except (*DAMAGED, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise InputError(f"{path} is damaged or not JSON: {error}.") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not SQuAD's JSON: {type(error).__name__} {error}.") from None


def _names(row: Mapping[str, Any]) -> str:
    return ", ".join(repr(str(name)[:40]) for name in row) or "none"

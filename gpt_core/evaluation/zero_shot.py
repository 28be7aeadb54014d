"""Zero-shot tasks for language models, from local files: LAMBADA, HellaSwag, PIQA, OpenBookQA, BLiMP.

The prompts are those of lm-eval (Gao et al. 2024), so that the scores are comparable.
"""

import math
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.data.tables import LETTERS, lettered, read_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A context and continuations, one of which is right.

    Attributes:
        context: the context; "" for whole texts.
        continuations: the continuations; a single one for LAMBADA.
        right: index of the right one.
    """

    context: str
    continuations: tuple[str, ...]
    right: int


def hellaswag(row: Row) -> Question:
    """HellaSwag (Zellers et al. 2019): the activity and the begin of a description, and four ends."""

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    begin = f"{_text(row, 'activity_label')}: {_text(row, 'ctx_a')} {_text(row, 'ctx_b', empty=True).capitalize()}"
    endings = row["endings"]
    if not isinstance(endings, list) or not all(isinstance(end, str) and end.strip() for end in endings):
        raise ValueError(f"endings is {str(endings)[:60]!r}; expected a list of texts")
    return _question(clean(begin), [" " + clean(end) for end in endings], row["label"])


def piqa(row: Row) -> Question:
    """PIQA (Bisk et al. 2020): a goal and two solutions."""
    solutions = [" " + _text(row, name) for name in ("sol1", "sol2")]
    return _question(f"Question: {_text(row, 'goal')}\nAnswer:", solutions, row["label"])


def openbookqa(row: Row) -> Question:
    """OpenBookQA (Mihaylov et al. 2018): a question stem and four choices, without the book."""
    choices = lettered(_text(row, "Choices"))
    letters = LETTERS[: len(choices)]
    if not choices or not all(choices):
        raise ValueError(f'Choices is {row["Choices"][:60]!r}; expected "(A) … (B) …"')
    key = _text(row, "Answer Key").strip()
    if key not in letters:
        raise ValueError(f"Answer Key is {key!r}; expected one of {', '.join(letters)}")
    return _question(_text(row, "Question Stem"), [" " + text for text in choices], letters.index(key))


def blimp(row: Row) -> Question:
    """BLiMP (Warstadt et al. 2020): an acceptable sentence and one that differs and is not."""
    return _question("", [_text(row, "sentence_good"), _text(row, "sentence_bad")], 0)


def lambada(row: Row) -> Question:
    """LAMBADA (Paperno et al. 2016): the last word of a passage."""
    context, _, word = _text(row, "text").rstrip().rpartition(" ")
    if not context:
        raise ValueError(f"text is {row['text'][:60]!r}; expected at least two words")
    return Question(context, (" " + word,), 0)


def _text(row: Row, name: str, empty: bool = False) -> str:
    value = row[name]
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f"{name} is {str(value)[:60]!r}; expected a text")
    return value


def _question(context: str, continuations: Sequence[str], label: Any) -> Question:
    """A question of at least two continuations; the label is a whole number, which a table has as a string."""
    whole = label if type(label) is int else int(label) if str(label).isdecimal() else -1
    if len(continuations) < 2 or not 0 <= whole < len(continuations):
        raise ValueError(
            f"the label is {label!r} of {len(continuations)} choices; expected 0 to {len(continuations) - 1}, of at "
            "least two"
        )
    return Question(context, tuple(continuations), whole)


@dataclass(frozen=True)
class ZeroShotTask:
    """A task: how its file is recognised and read.

    Attributes:
        name: its name in results.
        columns: columns by which its file is recognised.
        question: makes a question from a row.
        group: column whose values have scores of their own, of which the mean is taken; None: rows count alike.
    """

    name: str
    columns: tuple[str, ...]
    question: Callable[[Row], Question]
    group: str | None = None


TASKS = (
    ZeroShotTask("hellaswag", ("activity_label", "ctx_a", "ctx_b", "endings", "label"), hellaswag),
    ZeroShotTask("piqa", ("goal", "sol1", "sol2", "label"), piqa),
    ZeroShotTask("openbookqa", ("Question Stem", "Choices", "Answer Key"), openbookqa),
    ZeroShotTask("blimp", ("sentence_good", "sentence_bad", "uid"), blimp, "uid"),
    ZeroShotTask("lambada", ("text",), lambada),
)


def read_questions(path: Path) -> tuple[ZeroShotTask, list[Question], list[str]]:
    """A file's task, recognised by its columns, its questions, and the group of each.

    Raises:
        InputError: for a file of no known task, or a row that cannot be read, naming its place.
    """
    task: ZeroShotTask | None = None
    questions: list[Question] = []
    groups: list[str] = []
    for place, row in read_table(path):
        task = task or next((t for t in TASKS if all(c in row for c in t.columns)), None)
        if task is None:
            raise InputError(f"{path} has the columns {', '.join(row)}; expected those of {_known()}.")
        if missing := [column for column in task.columns if column not in row]:
            raise InputError(f"{place} has no {missing[0]}, which rows of {task.name} have; remove the row.")
        try:
            questions.append(task.question(row))
        except ValueError as error:
            raise InputError(f"{place} is no row of {task.name}: {error}.") from None
        groups.append(str(row[task.group]) if task.group else "")
    if task is None:
        raise InputError(f"{path} has no rows; expected those of {_known()}.")
    return task, questions, groups


def _known() -> str:
    return "; ".join(f"{task.name}: {', '.join(task.columns)}" for task in TASKS)


def pairs_of(questions: Sequence[Question]) -> Iterator[tuple[str, str]]:
    """Context and continuation of all choices of all questions, one after another."""
    for question in questions:
        yield from ((question.context, text) for text in question.continuations)


def standard_error(accuracy: float, n: int) -> float:
    """Standard error of a mean of n results that are right or wrong."""
    return math.sqrt(accuracy * (1 - accuracy) / max(1, n - 1))

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
from gpt_core.data.tables import read_table

Row = dict[str, Any]


@dataclass(frozen=True)
class Question:
    """A context and continuations, one of which is right.

    Attributes:
        contexts: the context of each continuation; all equal, except for LAMBADA's and BLiMP's single texts.
        continuations: the continuations.
        right: index of the right one.
    """

    contexts: tuple[str, ...]
    continuations: tuple[str, ...]
    right: int


def hellaswag(row: Row) -> Question:
    """HellaSwag (Zellers et al. 2019): the activity and the begin of a description, and four ends."""

    def clean(text: str) -> str:
        text = text.strip().replace(" [title]", ". ")
        return re.sub(r"\[.*?\]", "", text).replace("  ", " ")

    context = clean(f"{row['activity_label']}: {row['ctx_a']} {row['ctx_b'].capitalize()}")
    ends = tuple(" " + clean(end) for end in row["endings"])
    return Question((context,) * len(ends), ends, int(row["label"]))


def piqa(row: Row) -> Question:
    """PIQA (Bisk et al. 2020): a goal and two solutions."""
    context = f"Question: {row['goal']}\nAnswer:"
    return Question((context,) * 2, (f" {row['sol1']}", f" {row['sol2']}"), int(row["label"]))


def openbookqa(row: Row) -> Question:
    """OpenBookQA (Mihaylov et al. 2018): a question stem and four choices, without the book."""
    parts = re.split(r"\(([A-D])\)\s*", row["Choices"])[1:]
    letters, choices = parts[::2], tuple(" " + text.strip() for text in parts[1::2])
    return Question((row["Question Stem"],) * len(choices), choices, letters.index(row["Answer Key"].strip()))


def blimp(row: Row) -> Question:
    """BLiMP (Warstadt et al. 2020): an acceptable sentence and one that differs and is not."""
    return Question(("", ""), (row["sentence_good"], row["sentence_bad"]), 0)


def lambada(row: Row) -> Question:
    """LAMBADA (Paperno et al. 2016): the last word of a passage."""
    context, _, word = row["text"].rstrip().rpartition(" ")
    return Question((context,), (" " + word,), 0)


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
        try:
            questions.append(task.question(row))
        except (KeyError, ValueError, TypeError, AttributeError, IndexError) as error:
            raise InputError(f"{place} is no row of {task.name} ({type(error).__name__}: {error}).") from None
        if not 0 <= questions[-1].right < len(questions[-1].continuations):
            raise InputError(f"{place}: the label is none of {len(questions[-1].continuations)} choices.")
        groups.append(str(row[task.group]) if task.group else "")
    if task is None:
        raise InputError(f"{path} has no rows; expected those of {_known()}.")
    return task, questions, groups


def _known() -> str:
    return "; ".join(f"{task.name}: {', '.join(task.columns)}" for task in TASKS)


def pairs_of(questions: Sequence[Question]) -> Iterator[tuple[str, str]]:
    """Context and continuation of all choices of all questions, one after another."""
    for question in questions:
        yield from zip(question.contexts, question.continuations, strict=True)


def standard_error(accuracy: float, n: int) -> float:
    """Standard error of a mean of n results that are right or wrong."""
    return math.sqrt(accuracy * (1 - accuracy) / max(1, n - 1))

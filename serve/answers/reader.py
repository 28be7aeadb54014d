"""A reader: finds the words inside a quote that answer the question, with a span model that `finetune.py` trained."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import get_args

from gpt_core.common.errors import InputError
from gpt_core.hub.locate import DEFAULT_GENERATOR, DEFAULT_READER, is_cached, resolve
from gpt_core.tasks.folder import base_of, is_lora
from gpt_core.tasks.lora import Lora
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tasks.task_model import TaskModel
from serve.answers.language import Language, language_of
from serve.answers.quotes import Quote

NO_READER = "none"
# Words that are less probable to the reader are not shown (docs/log.md, 2026-11-30, a reader of answers).
LEAST_PROBABILITY = 0.4


@dataclass(frozen=True)
class ShortAnswer:
    """The words of a quote that answer a question.

    Attributes:
        text: the document's text[start:end], in code points.
        start, end: offsets into the document's text.
        probability: of these words, to the reader, which reads only the quote.
    """

    text: str
    start: int
    end: int
    probability: float


class Reader:
    """Reads quotes. The model is loaded when it is first used.

    Args:
        model: a model folder, a run's out_dir or a known name of the task span. zhizhi-reader reads only English.
        least: least probability of words that are shown.

    Raises:
        InputError: if it is none, is of another task, or changes a model that is not here.
    """

    def __init__(self, model: str | Path, least: float = LEAST_PROBABILITY) -> None:
        self.least, self._folder = least, resolve(model)
        self.languages = ("en",) if model == DEFAULT_READER else get_args(Language)
        if (task := TaskSettings.load(self._folder).task) != "span":
            raise InputError(f"The reader {model} was fine-tuned for {task}; expected the task span.")
        if is_lora(self._folder):
            base_of(self._folder, Lora.load(self._folder))

    @cached_property
    def model(self) -> TaskModel:
        """The span model.

        Raises:
            InputError: if it is damaged.
        """
        return TaskModel.from_pretrained(self._folder, "cpu")

    def read(self, question: str, quote: Quote) -> ShortAnswer | None:
        """The words of `quote` that answer `question`; None if the reader finds none that are probable enough."""
        if language_of(question) not in self.languages:
            return None
        (found,) = self.model.predict([{"question": question, "context": quote.text}])
        if not found.value or found.score < self.least:
            return None
        start, end = found.details["start"], found.details["end"]
        return ShortAnswer(str(found.value), quote.start + start, quote.start + end, found.score)


def open_reader(name: str | None) -> Reader | None:
    """The reader that a command names.

    Args:
        name: a model folder, a run's out_dir or a known name of the task span; "none": no reader; None: zhizhi-reader
            if the model that it changes is in the model cache, else no reader.

    Raises:
        InputError: as `Reader`.
    """
    if name is None and is_cached(DEFAULT_GENERATOR):
        name = DEFAULT_READER
    return None if name in (None, NO_READER) else Reader(name)

"""A reader: finds the words inside a quote that answer the question, with a span model that `finetune.py` trained."""

from dataclasses import dataclass
from pathlib import Path

from gpt_core.common.errors import InputError
from gpt_core.tasks.task_model import TaskModel
from serve.answers.quotes import Quote


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
    """Reads quotes.

    Args:
        model: a model folder or a run's out_dir of the task span.

    Raises:
        InputError: if it is none, is of another task, or is damaged.
    """

    def __init__(self, model: str | Path) -> None:
        self.model = TaskModel.from_pretrained(model, "cpu")
        if self.model.settings.task != "span":
            raise InputError(
                f"The reader {model} was fine-tuned for {self.model.settings.task}; expected the task span."
            )

    def read(self, question: str, quote: Quote) -> ShortAnswer | None:
        """The words of `quote` that answer `question`; None if the reader finds none."""
        (found,) = self.model.predict([{"question": question, "context": quote.text}])
        if not found.value:
            return None
        start, end = found.details["start"], found.details["end"]
        return ShortAnswer(str(found.value), quote.start + start, quote.start + end, found.score)

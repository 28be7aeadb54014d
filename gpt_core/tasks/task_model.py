"""A fine-tuned model that predicts: from Python, and as a command."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_open
from gpt_core.common.signals import StopSignal, raise_for_signal
from gpt_core.data.tables import read_table
from gpt_core.hardware.device import DeviceName, Numerics, pick_device
from gpt_core.hub.locate import resolve
from gpt_core.tasks.batches import Collator
from gpt_core.tasks.examples import FIELDS, Example, column_names, to_example
from gpt_core.tasks.folder import load_task
from gpt_core.tasks.inputs import InputFormat
from gpt_core.tasks.network import TaskNetwork
from gpt_core.tasks.predictions import Prediction, forward, predictions
from gpt_core.tasks.settings import TaskSettings
from gpt_core.tokenizer.tokenizer import Tokenizer

ROWS_PER_CALL = 512  # of a file, in memory at a time
TOKENS_PER_FORWARD = 8192  # padding included

Dtype = Literal["float32", "bfloat16"]


class TaskModel:
    """A GPT with a task's head. Make one with `from_pretrained`.

    Attributes:
        settings: the task and its labels.
        n_cut: number of rows so far whose texts lost tokens because they were too long.
    """

    def __init__(
        self, network: TaskNetwork, settings: TaskSettings, tokenizer: Tokenizer, dtype: Dtype = "float32"
    ) -> None:
        self.network, self.settings, self.tokenizer = network, settings, tokenizer
        self._inputs = InputFormat(settings.task, tokenizer, settings.max_tokens)
        self._collate = Collator(self._inputs, settings)
        self._numerics = Numerics(network.gpt.device.type, dtype)

    @classmethod
    def from_pretrained(
        cls, name_or_folder: str | Path, device: DeviceName = "auto", dtype: Dtype = "float32"
    ) -> "TaskModel":
        """Load a folder that fine-tuning wrote, or a run's out_dir (its best checkpoint).

        Raises:
            InputError: if it is none, or it is damaged.
        """
        network, settings, tokenizer = load_task(resolve(name_or_folder))
        return cls(network.to(pick_device(device)), settings, tokenizer, dtype)

    @property
    def n_cut(self) -> int:
        """Number of rows so far whose texts lost tokens."""
        return self._inputs.n_cut

    def predict(
        self, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, str] | None = None
    ) -> list[Prediction]:
        """Predict for rows that have the task's fields, such as {"text": …} or {"question": …, "context": …}.

        Args:
            rows: the rows; labels in them are ignored.
            columns: names of fields in `rows` that differ.

        Raises:
            InputError: for a row without a field, or with a wrong one.
        """
        task = self.settings.task
        names = {field: (columns or {}).get(field, field) for field in FIELDS[task]}
        examples = [to_example(f"row {i}", row, task, names, False) for i, row in enumerate(rows, 1)]
        return self.predict_examples(examples)

    def predict_examples(self, examples: Sequence[Example]) -> list[Prediction]:
        """`predict` of examples."""
        if not examples:
            return []
        done = forward(self.network, self._collate, examples, self._numerics, TOKENS_PER_FORWARD)
        return predictions(self.settings, done)


def predict_file(
    *,
    model: str,
    input: str,
    out: str,
    columns: tuple[str, ...] = (),
    device: DeviceName = "auto",
    dtype: Dtype = "float32",
) -> None:
    """Predict with a fine-tuned model for every row of a file.

    Each row is written to `out` as a line of JSON with `prediction` and `score` (its probability; for similarity the
    prediction, unless the row has a score) added: classification, entailment and choice also get `scores`; span gets
    the answer's `start` and `end` (characters of the context; null if it does not hold the answer) and `score_none`.

    Args:
        model: a folder that fine-tuning wrote, or a run's out_dir.
        input: .jsonl, .csv or .tsv (.gz, .xz) with the task's fields, such as text, or question and context.
        out: file of JSON lines, written as a whole at the end.
        columns: columns with other names than the task's fields, such as text=review.
        device: auto: cuda, else mps, else cpu.
        dtype: of the matrix products.
    """
    task_model = TaskModel.from_pretrained(model, device, dtype)
    task = task_model.settings.task
    names = {field: field for field in FIELDS[task]} | column_names(columns, task)
    if Path(out).suffix != ".jsonl" or Path(out).is_dir() or not Path(out).parent.is_dir():
        raise InputError(f"out is {out!r}; expected the name of a .jsonl file in a folder that exists.")
    rows = [
        (row, to_example(place, row, task, names, False), place) for place, row in read_table(Path(input))
    ]
    with StopSignal() as stop, atomic_open(out) as file:
        for start in tqdm(range(0, len(rows), ROWS_PER_CALL), "predicting", leave=False, disable=None):
            raise_for_signal(stop.received)
            some = rows[start : start + ROWS_PER_CALL]
            found = task_model.predict_examples([example for _, example, _ in some])
            for (row, _, place), prediction in zip(some, found, strict=True):
                new = {"prediction": prediction.value, "score": prediction.score} | prediction.details
                if task == "similarity" and "score" in row:
                    del new["score"]  # the row's own
                if taken := sorted(row.keys() & new.keys()):
                    raise InputError(
                        f"{place} has a {taken[0]} already, which the prediction would replace; rename that column."
                    )
                file.write((json.dumps(row | new, ensure_ascii=False) + "\n").encode())
    cut = (
        f"; {task_model.n_cut:,} rows were cut to {task_model.settings.max_tokens} tokens"
        if task_model.n_cut
        else ""
    )
    print(f"{out}: {len(rows):,} predictions{cut}")

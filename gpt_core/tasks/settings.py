"""What a task's folder says beside the model: `task.json`."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import get_args

from gpt_core.common.errors import InputError
from gpt_core.common.json_files import read_json
from gpt_core.hub.locate import TASK_FILE
from gpt_core.tasks.examples import Task


@dataclass(frozen=True)
class TaskSettings:
    """How rows are made and logits are read.

    Attributes:
        task: the task.
        labels: classification and entailment: the labels, in the order of the logits.
        max_tokens: longest row.
        padding_mask: False: rows begin with padding up to max_tokens that is read like text.
        answer_tokens: span: longest answer in tokens.
        mean, deviation: similarity: score = mean + deviation · logit.
    """

    task: Task
    labels: tuple[str, ...] = ()
    max_tokens: int = 256
    padding_mask: bool = True
    answer_tokens: int = 30
    mean: float = 0.0
    deviation: float = 1.0

    def to_json(self) -> str:
        """The content of `task.json`."""
        return json.dumps(asdict(self), indent=2, ensure_ascii=False) + "\n"

    @classmethod
    def load(cls, folder: Path) -> "TaskSettings":
        """Read a folder's `task.json`.

        Raises:
            InputError: if there is none, or it is damaged.
        """
        path = folder / TASK_FILE
        if not path.is_file():
            raise InputError(
                f"{folder} has no {TASK_FILE}; expected a folder that scripts/finetune.py wrote, such as an out_dir."
            )
        raw = read_json(path)
        kinds = {f.name: f.type for f in fields(cls)}
        right = raw.keys() == kinds.keys() and raw["task"] in get_args(Task)
        right = right and all(
            type(raw[name]) is int and raw[name] > 0 for name in ("max_tokens", "answer_tokens")
        )
        right = right and isinstance(raw["labels"], list) and all(isinstance(x, str) for x in raw["labels"])
        right = right and isinstance(raw["padding_mask"], bool)
        if not right or not all(isinstance(raw[name], int | float) for name in ("mean", "deviation")):
            raise InputError(f"{path} does not describe a task: {str(raw)[:200]}; copy the folder again.")
        return cls(**raw | {"labels": tuple(raw["labels"])})

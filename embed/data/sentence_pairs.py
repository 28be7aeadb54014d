"""Files of sentence pairs with human scores, such as STS-B's."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.errors import InputError
from gpt_core.data.tables import read_table

FIELDS = ("sentence1", "sentence2", "score")


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
        rows = [(place, [row.get(key) for key in FIELDS]) for place, row in read_table(path, FIELDS)]
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

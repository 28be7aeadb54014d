"""Rows of token ids from examples, in GPT-1's formats (Radford et al. 2018).

    classification   start text extract
    entailment       start premise delimiter hypothesis extract
    similarity       start a delimiter b extract, and start b delimiter a extract
    choice           start context delimiter choice extract, for every choice
    span             start question delimiter passage extract, for every part of the passage that fits

start, delimiter and extract are the tokenizer's tokens for the begin and the end of a text, so that no token is new.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gpt_core.common.errors import InputError
from gpt_core.tasks.examples import Example, Task
from gpt_core.tokenizer.tokenizer import Offsets, Tokenizer

MIN_PASSAGE = 16  # tokens of a passage that a row has at least, however long its question is


@dataclass(frozen=True, eq=False)
class InputRow:
    """A row of token ids, from start to extract.

    Attributes:
        ids: (n,) token ids.
        first: span: index of the passage's first token.
        offsets: span: range of code points of the passage for each of its tokens in this row.
    """

    ids: NDArray[np.int32]
    first: int = 0
    offsets: Offsets = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)


class InputFormat:
    """Makes rows from examples.

    Args:
        task: the task.
        tokenizer: has an end or a begin token.
        max_tokens: longest row.

    Attributes:
        pad_id: an id to pad with that is not the last token of a row, so that transformers finds the last token.
        n_cut: number of rows so far whose texts lost tokens.

    Raises:
        InputError: if the tokenizer has neither an end nor a begin token.
    """

    def __init__(self, task: Task, tokenizer: Tokenizer, max_tokens: int) -> None:
        self.task, self.tokenizer, self.max_tokens = task, tokenizer, max_tokens
        self.n_cut = 0
        self.end = require_end(tokenizer)
        self.start = self.end if tokenizer.bos_id is None else tokenizer.bos_id
        self.pad_id = next(i for i in (tokenizer.pad_id, 0, 1) if i is not None and i != self.end)

    def rows(self, examples: Sequence[Example]) -> list[list[InputRow]]:
        """The rows of each example: one; two for similarity; one per choice; one per part of a passage."""
        if self.task == "span":
            return [self._span_rows(*example.texts) for example in examples]
        texts = [text for example in examples for text in example.texts]
        found = iter(self.tokenizer.encode_batch(texts))
        result = []
        for example in examples:
            parts = [next(found) for _ in example.texts]
            groups = [parts]
            if self.task == "similarity":
                groups = [parts, parts[::-1]]
            elif self.task == "choice":
                groups = [[parts[0], choice] for choice in parts[1:]]
            result.append([self._row(group) for group in groups])
        return result

    def _row(self, parts: list[list[int]]) -> InputRow:
        """One row; if it is too long, the longest part loses its last tokens, two long parts equally many."""
        space = max(0, self.max_tokens - 1 - len(parts))  # without start, delimiters and extract
        lengths = [len(part) for part in parts]
        if sum(lengths) > space:
            self.n_cut += 1
            rest = min(lengths[-1], space // 2) if len(parts) > 1 else 0
            lengths[0] = min(lengths[0], space - rest)
            if len(parts) > 1:
                lengths[1] = space - lengths[0]
        ids = [self.start]
        for part, length in zip(parts, lengths, strict=True):
            ids += [*part[:length], self.end]  # the last one is the extract token
        return InputRow(np.array(ids, dtype=np.int32))

    def _span_rows(self, question: str, passage: str) -> list[InputRow]:
        """Rows of a question and parts of a passage, each of which overlaps the next by half."""
        asked = self.tokenizer.encode(question)
        ids, offsets = self.tokenizer.encode_with_offsets(passage)
        longest = max(0, self.max_tokens - 3 - min(MIN_PASSAGE, len(ids)))
        if len(asked) > longest:
            self.n_cut += 1
            asked = asked[:longest]
        size = max(1, self.max_tokens - 3 - len(asked))  # tokens of a part
        head = [self.start, *asked, self.end]
        rows = []
        for begin in range(0, max(1, len(ids) - size + max(1, size // 2)), max(1, size // 2)):
            part = slice(begin, begin + size)
            row = np.array([*head, *ids[part], self.end], dtype=np.int32)
            rows.append(InputRow(row, len(head), offsets[part]))
            if begin + size >= len(ids):
                break
        return rows


def require_end(tokenizer: Tokenizer) -> int:
    """The id of the token for the end of a text, or else for its begin.

    Raises:
        InputError: if the tokenizer has neither.
    """
    for token_id in (tokenizer.eos_id, tokenizer.bos_id):
        if token_id is not None:
            return token_id
    raise InputError(
        "The tokenizer has no token for the end or the begin of a text, which ends every row; name an eos_token in its "
        "tokenizer_config.json."
    )

"""Conversations to train on, and their tokens packed into rows."""

import hashlib
import re
import sys
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gpt_core.common.compressed import DAMAGED, open_text
from gpt_core.common.errors import InputError
from gpt_core.common.jsonl import JSONL
from gpt_core.common.list_files import has_ending
from gpt_core.data.batches import IGNORED
from gpt_core.data.tables import dataset_rows, read_table
from gpt_core.generation.conversation import Message, check_messages
from gpt_core.tasks.stream import ShuffledStream
from gpt_core.tokenizer.tokenizer import Tokenizer
from gpt_core.training.parallel.ranks import ALONE, Ranks

TEXT = (".txt", ".txt.gz", ".txt.xz")
BETWEEN_CHINESE = re.compile(r"(?<=[\u3000-\u9fff\uff00-\uffef]) (?=[\u3000-\u9fff\uff00-\uffef])")
# For a model without a chat template, such as one that was pretrained here; needs only a token for the end of a text.
PLAIN_TEMPLATE = (
    "{% for message in messages %}{{ message.role | capitalize }}:\n{{ message.content }}"
    "{{ eos_token if message.role == 'assistant' else '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}Assistant:\n{% endif %}"
)


def read_conversations(source: str, split: str = "train") -> list[list[Message]]:
    """Read conversations, each of turns of "user" and "assistant", optionally after one of "system".

    Args:
        source: .jsonl (.gz, .xz) or a dataset of the library `datasets`, with rows of `messages`; of `turns`,
            alternating texts, of which an odd last one is dropped; or of `instruction`, `input` (optional) and
            `output`. Or .txt (.gz, .xz), a conversation a line, tabs between its turns; spaces between Chinese
            characters are removed.
        split: of a dataset.

    Raises:
        InputError: for a source or a row that cannot be read, naming its place; roles out of order; no conversation.
    """
    path = Path(source)
    if has_ending(path, TEXT):
        found = _read_text(path)
    elif path.is_file() or has_ending(path, JSONL):
        found = (_messages(place, row) for place, row in read_table(path))
    elif path.suffix or not source:
        raise InputError(
            f"{source!r} is no file; expected {', '.join((*JSONL, *TEXT))}, or a dataset's name."
        )
    else:
        found = (_messages(place, row) for place, row in dataset_rows(source, split))
    conversations = [messages for messages in found if messages]
    if not conversations:
        raise InputError(f"{source} has no conversation with a reply; expected at least one.")
    return conversations


def _read_text(path: Path) -> Iterator[list[Message]]:
    try:
        with open_text(path) as lines:
            for line in lines:
                yield _alternating([BETWEEN_CHINESE.sub("", turn).strip() for turn in line.split("\t")])
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected a file of conversations.") from None
    except (*DAMAGED, UnicodeDecodeError) as error:
        raise InputError(f"{path} is damaged or not UTF-8: {error}.") from None


def _alternating(turns: Sequence[str]) -> list[Message]:
    """Messages of user and assistant; ends before an empty turn and with a reply."""
    whole = turns[: turns.index("")] if "" in turns else turns
    return [
        {"role": ("user", "assistant")[i % 2], "content": text}
        for i, text in enumerate(whole[: len(whole) // 2 * 2])
    ]


def _messages(place: str, row: dict[str, Any]) -> list[Message]:
    """The conversation in a row; [] if its turns have no reply."""
    if "turns" in row:
        turns = row["turns"]
        if not isinstance(turns, list) or not all(isinstance(turn, str) for turn in turns):
            raise InputError(f"{place}: turns is {str(turns)[:80]}; expected a list of strings.")
        return _alternating([turn.strip() for turn in turns])
    if "instruction" in row and "output" in row:
        for name in ("instruction", "input", "output"):
            if not isinstance(row.get(name) or "", str):
                raise InputError(f"{place}: {name} is {str(row[name])[:80]}; expected a string.")
        asked = "\n\n".join(
            filter(None, ((row[name] or "").strip() for name in ("instruction", "input") if name in row))
        )
        return _alternating([asked, (row["output"] or "").strip()])
    if "messages" not in row:
        raise InputError(
            f"{place} has {', '.join(map(repr, row)) or 'nothing'}; expected messages, turns, or instruction and "
            "output."
        )
    messages = row["messages"]
    try:
        check_messages(messages)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{place} is no conversation ({_reason(error)}); expected turns of user and assistant, optionally after "
            "one of system, each with role and content, both strings."
        ) from None
    if not any(message["role"] == "assistant" for message in messages):
        raise InputError(
            f"{place} has no turn of the assistant, so nothing can be learned from it; remove it."
        )
    return [{"role": message["role"], "content": message["content"]} for message in messages]


def _reason(error: Exception) -> str:
    return (
        str(error) if isinstance(error, ValueError) or "content" in str(error) else "messages of another form"
    )


@dataclass(frozen=True, eq=False)
class Packs:
    """Rows of several conversations.

    Attributes:
        ids: (R, T) int32 token ids.
        targets: (R, T) int32 next token where it is part of a reply, else -100.
        segments: (R, T) int32 number of the conversation in its row; -1: padding.
        n_cut: number of conversations that lost their last tokens.
        n_dropped: number of conversations without a token to learn after that.
    """

    ids: np.ndarray[Any, np.dtype[np.int32]]
    targets: np.ndarray[Any, np.dtype[np.int32]]
    segments: np.ndarray[Any, np.dtype[np.int32]]
    n_cut: int
    n_dropped: int

    def checksum(self) -> str:
        """SHA-256 of all rows, in hex."""
        digest = hashlib.sha256()
        for array in (self.ids, self.targets, self.segments):
            digest.update(np.ascontiguousarray(array).tobytes())
        return digest.hexdigest()


def pack(conversations: Sequence[list[Message]], tokenizer: Tokenizer, length: int) -> Packs:
    """Pack conversations into rows of `length` tokens, first fit: the longest first, each into the fullest row it fits.

    A conversation is never divided; a longer one loses its last tokens.

    Raises:
        InputError: if no conversation has a token to learn.
    """
    rows: list[list[tuple[list[int], list[bool]]]] = []
    free: list[tuple[int, int]] = []  # tokens that are left in a row, and its number; sorted
    n_cut = n_dropped = 0
    encoded = []
    for messages in conversations:
        ids, learned = tokenizer.chat_replies(messages, length + 1)
        # the last token is only a target, so a row of `length` inputs holds one token more
        n_cut += len(ids) > length + 1
        ids, learned = ids[: length + 1], learned[: length + 1]
        if any(learned[1:]):
            encoded.append((ids, learned))
        else:
            n_dropped += 1
    if not encoded:
        raise InputError(
            f"No reply is left in the first {length} tokens of any conversation; give a larger max_tokens."
        )
    for ids, learned in sorted(encoded, key=lambda x: len(x[0]), reverse=True):
        size = len(ids) - 1
        place = bisect_left(free, (size, 0))
        left, row_number = free.pop(place) if place < len(free) else (length, len(rows))
        if row_number == len(rows):
            rows.append([])
        rows[row_number].append((ids, learned))
        insort(free, (left - size, row_number))
    shape = (len(rows), length)
    packed, targets, segments = (np.full(shape, fill, np.int32) for fill in (0, IGNORED, -1))
    for r, row in enumerate(rows):
        start = 0
        for number, (ids, learned) in enumerate(row):
            stop = start + len(ids) - 1
            packed[r, start:stop] = ids[:-1]
            targets[r, start:stop] = np.where(learned[1:], ids[1:], IGNORED)
            segments[r, start:stop] = number
            start = stop
    return Packs(packed, targets, segments, n_cut, n_dropped)


ChatBatch = tuple[Tensor, Tensor, Tensor]  # ids, targets, segments, each (B, T) int64


class ChatBatches(ShuffledStream):
    """The endless stream of micro-batches of packed rows.

    Args:
        packs: the rows.
        batch_size: rows per step, over all ranks.
        micro_batch_size: rows per forward.
        seed: seed of the permutations.
        identity: further settings, by name, that must be equal for a run to resume.
        ranks: the processes.

    Raises:
        InputError: as `ShuffledStream`.
    """

    def __init__(
        self,
        packs: Packs,
        batch_size: int,
        micro_batch_size: int,
        seed: int,
        identity: dict[str, Any],
        ranks: Ranks = ALONE,
    ) -> None:
        super().__init__(len(packs.ids), batch_size, seed, {"data": packs.checksum(), **identity}, ranks)
        self.packs, self.micro_batch_size = packs, micro_batch_size

    def __next__(self) -> list[ChatBatch]:
        """This rank's micro-batches of the next step."""
        mine, size = self.next_indices(), self.micro_batch_size
        return [
            chat_batch(self.packs, mine[i : i + size], self.ranks.device) for i in range(0, len(mine), size)
        ]

    def describe(self, step: int) -> str:
        """The data in the batch of step `step` (from 1), as text for an error message."""
        first = self.first_index(step) + 1
        return f"{self.batch_size} packed rows, the first of them row {first} of {self.n_items}"


def chat_batch(packs: Packs, rows: Any, device: torch.device) -> ChatBatch:
    """Rows of `packs` without the columns at the end that are padding in all of them."""
    width = max(1, int((packs.segments[rows] >= 0).sum(1).max()))
    parts = (packs.ids, packs.targets, packs.segments)
    ids, targets, segments = (
        torch.from_numpy(part[rows, :width].astype(np.int64)).to(device) for part in parts
    )
    return ids, targets, segments


def report_packs(packs: Packs) -> None:
    """Say on stderr what was cut and dropped."""
    if packs.n_cut or packs.n_dropped:
        length = packs.ids.shape[1]
        print(
            f"{packs.n_cut:,} conversations were cut to {length} tokens; {packs.n_dropped:,} have no reply in them and "
            "were dropped",
            file=sys.stderr,
        )

"""A conversation with a model: what was said, what of it the model reads, and its file."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.generation.prompts import refuse_long
from gpt_core.tokenizer.tokenizer import Tokenizer

Message = dict[str, str]  # "role", "content", and "finish_reason" for an answer that did not come to its end


class Conversation:
    """Turns of a user and a model, after what the system said, if anything.

    When the turns no longer fit the context, the oldest ones are not read any more; they stay in `messages`.

    Args:
        tokenizer: the model's own, with a chat template.
        context: tokens that the model reads and writes together.
        max_new_tokens: of these, kept free for the answer.
        messages: what was said before, oldest first.

    Attributes:
        messages: all that was said, oldest first.
        n_forgotten: turns, each a question with its answer, that are not read any more.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: int, max_new_tokens: int, messages: Sequence[Message] = ()
    ) -> None:
        self.messages = list(messages)
        self.n_forgotten = 0
        self._tokenizer, self._context, self._room = tokenizer, context, context - max_new_tokens

    def prompt(self, content: str) -> list[int]:
        """The tokens that an answer to `content` continues; `n_forgotten` grows where they would be too many.

        Raises:
            InputError: if the message does not fit even without the earlier turns, or the template refuses it.
        """
        refuse_long(content, self._room, "message")
        n_system = len(self._system)

        @cache
        def tokens(n_forgotten: int) -> list[int]:
            read = [
                *self._system,
                *self.messages[n_system + 2 * n_forgotten :],
                {"role": "user", "content": content},
            ]
            return self._tokenizer.chat([{"role": m["role"], "content": m["content"]} for m in read])

        choices = range(self.n_forgotten, (len(self.messages) - n_system) // 2 + 1)
        n_forgotten = (
            bisect_left(choices, True, key=lambda n: len(tokens(n)) <= self._room) + self.n_forgotten
        )
        if n_forgotten not in choices:
            raise InputError(
                f"The message takes {len(tokens(choices[-1]))} tokens, with what the system says but without earlier "
                f"turns; the context holds {self._context}, of which {self._context - self._room} are kept for the "
                "answer: shorten it."
            )
        self.n_forgotten = n_forgotten
        return tokens(n_forgotten)

    def add(self, question: str, answer: str, finish_reason: str | None) -> None:
        """Keep a turn; an answer that did not come to its end ("length", "cancelled") says so."""
        reply = {"role": "assistant", "content": answer}
        if finish_reason is not None and finish_reason != "stop":
            reply["finish_reason"] = finish_reason
        self.messages += [{"role": "user", "content": question}, reply]

    def reset(self) -> None:
        """Forget everything but what the system said."""
        self.messages, self.n_forgotten = self._system, 0

    @property
    def _system(self) -> list[Message]:
        return [m for m in self.messages[:1] if m["role"] == "system"]


def save(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Write `{"model", "messages"}` as one line: a JSON file, and a line of the JSONL that fine-tuning reads."""
    atomic_write(path, json.dumps({"model": model, "messages": list(messages)}, ensure_ascii=False) + "\n")


def load(path: Path) -> list[Message]:
    """The messages that `save` wrote.

    Raises:
        InputError: if the file is missing or holds no conversation whose last message is an answer.
    """
    try:
        content = json.loads(path.read_bytes())
        messages = content["messages"]
        _check(messages)
    except FileNotFoundError as error:
        raise InputError(f"There is no file {path} to load a conversation from.") from error
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise InputError(
            f'{path} is no saved conversation ({type(error).__name__}: {error}); expected {{"messages": [...]}} with '
            'turns of "user" and "assistant", perhaps after one of "system".'
        ) from error
    return messages


def _check(messages: Any) -> None:
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [m["role"] for m in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"the roles are {', '.join(map(str, roles))}")
    if not all(isinstance(m["content"], str) for m in messages):
        raise TypeError("a content is no text")

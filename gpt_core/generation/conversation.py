"""A conversation: its messages, the prompt made from those that fit the context, and its file."""

import json
from bisect import bisect_left
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from gpt_core.common.errors import InputError
from gpt_core.common.files import atomic_write
from gpt_core.common.json_files import read_json
from gpt_core.generation.prompts import refuse_long
from gpt_core.tokenizer.tokenizer import Tokenizer

Message = dict[str, str]  # "role", "content", and "finish_reason" for an incomplete answer


class Conversation:
    """Turns of a user and a model, after an optional system prompt.

    When the turns no longer fit the context, the oldest are dropped from the prompt; they stay in `messages`.

    Args:
        tokenizer: the model's tokenizer, with a chat template.
        context: context length in tokens, prompt and answer together.
        max_new_tokens: tokens of the context that are reserved for the answer.
        messages: earlier messages, oldest first.

    Attributes:
        messages: all messages, oldest first.
        n_forgotten: number of turns (a question with its answer) dropped from the prompt.
    """

    def __init__(
        self, tokenizer: Tokenizer, context: int, max_new_tokens: int, messages: Sequence[Message] = ()
    ) -> None:
        self.messages = list(messages)
        self.n_forgotten = 0
        self._tokenizer, self._context, self._max_prompt = tokenizer, context, context - max_new_tokens

    def prompt(self, content: str) -> list[int]:
        """The prompt ids for an answer to `content`; raises `n_forgotten` until they fit the context.

        Raises:
            InputError: if the message does not fit even without the earlier turns, or the template rejects it.
        """
        refuse_long(content, self._max_prompt, "message")
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
            bisect_left(choices, True, key=lambda n: len(tokens(n)) <= self._max_prompt) + self.n_forgotten
        )
        if n_forgotten not in choices:
            raise InputError(
                f"The message takes {len(tokens(choices[-1]))} tokens with the system prompt and without earlier "
                f"turns; the context holds {self._context}, of which {self._context - self._max_prompt} are reserved "
                "for the answer. Shorten the message."
            )
        self.n_forgotten = n_forgotten
        return tokens(n_forgotten)

    def add(self, question: str, answer: str, finish_reason: str | None) -> None:
        """Append a turn; an incomplete answer ("length", "cancelled") is stored with its `finish_reason`."""
        reply = {"role": "assistant", "content": answer}
        if finish_reason is not None and finish_reason != "stop":
            reply["finish_reason"] = finish_reason
        self.messages += [{"role": "user", "content": question}, reply]

    def reset(self) -> None:
        """Remove all messages but the system prompt."""
        self.messages, self.n_forgotten = self._system, 0

    @property
    def _system(self) -> list[Message]:
        return [m for m in self.messages[:1] if m["role"] == "system"]


def save(path: Path, model: str, messages: Sequence[Message]) -> None:
    """Write `{"model", "messages"}` as one line of JSON."""
    atomic_write(path, json.dumps({"model": model, "messages": list(messages)}, ensure_ascii=False) + "\n")


def load(path: Path) -> tuple[str | None, list[Message]]:
    """The name of the model, None if the file has none, and the messages that `save` wrote.

    Raises:
        InputError: if the file is missing or is not a conversation that ends with an answer.
    """
    content = read_json(path, optional=False)
    try:
        messages = content["messages"]
        check_messages(messages)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not a saved conversation ({type(error).__name__}: {error}); expected "
            '{"messages": [...]} with turns of "user" and "assistant", optionally after one of "system".'
        ) from error
    model = content.get("model")
    return model if isinstance(model, str) else None, messages


def check_messages(messages: Any) -> None:
    """Raise ValueError, KeyError or TypeError unless there are turns of user and assistant, after one of system."""
    turns = messages[1:] if messages and messages[0]["role"] == "system" else messages
    roles = [m["role"] for m in turns]
    if roles != ["user", "assistant"] * (len(roles) // 2):
        raise ValueError(f"the roles are {', '.join(map(str, roles))}")
    if not all(isinstance(m["content"], str) for m in messages):
        raise TypeError("a content is not a string")

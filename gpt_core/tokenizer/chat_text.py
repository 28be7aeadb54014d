"""Conversations as text and as token ids, in a model's chat template."""

import re
import secrets
from collections.abc import Container
from typing import TYPE_CHECKING

from gpt_core.common.errors import InputError
from gpt_core.tokenizer.chat_template import render

if TYPE_CHECKING:
    from gpt_core.tokenizer.tokenizer import Tokenizer


class ChatText:
    """Messages that are rendered and encoded, in which a special token that is spelled out stays text.

    Special tokens that are spelled out in a message are replaced by a nonce before the rendering and inserted as text
    afterwards. The text between them is tokenised in one piece, as in the model's training.
    """

    def __init__(self, tokenizer: "Tokenizer", messages: list[dict[str, str]]) -> None:
        if tokenizer.chat_template is None:
            raise InputError(
                "This model has no chat template; use a model that is trained for chat, or complete text instead."
            )
        self.tokenizer, self.template = tokenizer, tokenizer.chat_template
        nonce = secrets.token_hex(8)
        marks = {token: f"\ue000{nonce}:{i}\ue001" for i, token in enumerate(tokenizer.special_tokens)}
        self.tokens = {mark: token for token, mark in marks.items()}
        spelled = re.compile("|".join(map(re.escape, marks)) or "(?!)")  # (?!) matches nothing
        self.hidden = []
        for message in messages:
            for text in message.values():
                check_unicode(text)
            self.hidden.append({k: spelled.sub(lambda m: marks[m[0]], text) for k, text in message.items()})
        named = (
            ("bos_token", tokenizer.bos_id),
            ("eos_token", tokenizer.eos_id),
            ("pad_token", tokenizer.pad_id),
        )
        self.special = {name: tokenizer.decode([i]) for name, i in named if i is not None}

    def render(self, n: int, reply: bool) -> str:
        """The first n messages as text, with marks; see `chat_template.render`."""
        rendered = render(self.template, self.hidden[:n], self.special, reply)
        check_unicode(rendered)
        return rendered

    def encode(self, rendered: str) -> list[int]:
        """Token ids of rendered text; its special tokens are the template's."""
        ids: list[int] = []
        pieces = re.split(f"({'|'.join(self.tokens) or '(?!)'})", rendered)
        for i, piece in enumerate(pieces):  # marks have odd indices
            ids += (
                self.tokenizer.encode(self.tokens[piece]) if i % 2 else self.tokenizer.encode_template(piece)
            )
        return ids

    def replies(self, special: Container[int], limit: int | None = None) -> tuple[list[int], list[bool]]:
        """See `Tokenizer.chat_replies`; `special` are the ids of special tokens."""
        ids: list[int] = []
        learned: list[bool] = []
        done = ""
        for n, message in enumerate(self.hidden):
            if message["role"] != "assistant":
                continue
            if limit is not None and len(ids) >= limit:
                break
            before, after = self.render(n, reply=True), self.render(n + 1, reply=False)
            if not before.startswith(done) or not after.startswith(before):
                raise InputError(
                    "The model's chat template changes earlier turns when a turn is added, so its replies cannot be "
                    "trained in one piece; train on conversations of one turn, or change the template."
                )
            prompt, reply = self.encode(before[len(done) :]), self.encode(after[len(before) :])
            ends = [i for i, token in enumerate(reply) if token in special]
            n_learned = ends[-1] + 1 if ends else len(reply)
            ids += prompt + reply
            learned += [False] * len(prompt) + [i < n_learned for i in range(len(reply))]
            done = after
        return ids, learned


def check_unicode(text: str) -> None:
    """Raise InputError for a text with half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError(
            f"The text is not valid Unicode: lone surrogate U+{ord(text[error.start]):04X} at character "
            f"{error.start}; decode its source with errors='replace'."
        ) from error

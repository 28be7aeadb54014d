"""A prompt on its way through the generation engine."""

import threading
from collections.abc import Callable
from typing import Literal

import torch

from gpt_core.generation.prompt_lookup import Lookup
from gpt_core.generation.sampling import SamplingParams, TokenLogprobs
from gpt_core.tokenizer.detokenizer import Detokenizer

NO_SLOT = -1


class Request:
    """A prompt on its way through the engine; made by `Engine.submit`.

    Attributes:
        params: how to continue the prompt.
        token_ids: the tokens so far, with the end-of-text token or those of the stop string that ended them.
        logprobs: of each of these tokens, if `params.logprobs` asks for them.
        finish_reason: "stop" (end-of-text token or stop string), "length" (max_new_tokens or end of context),
            "cancelled", or None: not finished, or failed.
        error: what was raised by the model or by `on_text`, if that ended the request.
        n_reused: tokens of the prompt that were not read, since an earlier text begins with them.
    """

    def __init__(
        self,
        prompt_ids: list[int],
        params: SamplingParams,
        on_text: Callable[[str], None] | None,
        max_new_tokens: int,
        detokenizer: Detokenizer,
    ) -> None:
        self.params = params
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprobs] = []
        self.finish_reason: Literal["stop", "length", "cancelled"] | None = None
        self.error: Exception | None = None
        self.n_reused = 0
        # what follows is the engine's
        self.prompt_ids = prompt_ids
        self.on_text = on_text
        self.max_new_tokens = max_new_tokens  # as far as the context reaches
        self.detokenizer = detokenizer
        self.generator = torch.Generator()  # its own: the draws of one request never move those of another
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self.slot = NO_SLOT  # in the cache, while it runs
        self.unread: list[int] = []  # what is still to be read before the next token can be drawn
        self.cancelled = False
        self.pieces: list[str] = []
        self.finished = threading.Event()
        self._lookup: Lookup | None = None

    @property
    def text(self) -> str:
        """The text so far, exactly as `on_text` got it."""
        return "".join(self.pieces)

    @property
    def n_prompt(self) -> int:
        """Tokens in the prompt."""
        return len(self.prompt_ids)

    @property
    def done(self) -> bool:
        """Whether nothing more will come: finished, cancelled or failed."""
        return self.finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until done, while another thread steps the engine; False after `timeout` seconds."""
        return self.finished.wait(timeout)

    def push(self, token: int) -> None:
        """Append the next token."""
        self.token_ids.append(token)
        if self._lookup is not None:
            self._lookup.push(token)

    def window(self, context: int) -> list[int]:
        """What is read of prompt and text so far: all of it, or its last half context if it fills that."""
        ids = self.prompt_ids + self.token_ids
        return ids if len(ids) <= context else ids[-((context + 1) // 2) :]

    def guess(self, n: int) -> list[int]:
        """Up to `n` tokens that may follow."""
        if self._lookup is None:
            self._lookup = Lookup(self.prompt_ids + self.token_ids)
        return self._lookup.guess(n) if n > 0 else []

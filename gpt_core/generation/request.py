"""The state of one generation request."""

import threading
from collections.abc import Callable
from typing import Literal

import torch

from gpt_core.generation.prompt_lookup import Lookup
from gpt_core.generation.sampling import SamplingParams, TokenLogprobs
from gpt_core.tokenizer.detokenizer import Detokenizer

NO_SLOT = -1


class Request:
    """The state of one request; created by `Engine.submit`.

    Attributes:
        params: sampling parameters.
        token_ids: ids generated so far, including the end-of-text token or the stop string's tokens at the end.
        logprobs: of each of these tokens, if `params.logprobs` is set.
        finish_reason: "stop" (end-of-text token or stop string), "length" (max_new_tokens or end of context),
            "cancelled", or None: not finished, or failed.
        error: the exception of the model or of `on_text` that ended the request, else None.
        n_reused: prompt tokens that were not prefilled, because a cached sequence has the same prefix.
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
        # the following attributes are used by the engine only
        self.prompt_ids = prompt_ids
        self.on_text = on_text
        self.max_new_tokens = max_new_tokens  # limited by the context
        self.detokenizer = detokenizer
        self.generator = (
            torch.Generator()
        )  # one per request, so that requests do not change each other's samples
        if params.seed is None:
            self.generator.seed()
        else:
            self.generator.manual_seed(params.seed)
        self.slot = NO_SLOT  # in the cache, while the request is running
        self.unread: list[int] = []  # tokens still to prefill before the next token can be sampled
        self.cancelled = False
        self.pieces: list[str] = []
        self.finished = threading.Event()
        self._lookup: Lookup | None = None

    @property
    def text(self) -> str:
        """The text so far, as passed to `on_text`."""
        return "".join(self.pieces)

    @property
    def n_prompt(self) -> int:
        """Number of prompt tokens."""
        return len(self.prompt_ids)

    @property
    def done(self) -> bool:
        """Whether the request has finished, was cancelled or failed."""
        return self.finished.is_set()

    def wait(self, timeout: float | None = None) -> bool:
        """Block until done, while another thread steps the engine; returns False after `timeout` seconds."""
        return self.finished.wait(timeout)

    def push(self, token: int) -> None:
        """Append the next token."""
        self.token_ids.append(token)
        if self._lookup is not None:
            self._lookup.push(token)

    def window(self, context: int) -> list[int]:
        """Ids to prefill: prompt and text so far, or their last half context if they are longer than the context."""
        ids = self.prompt_ids + self.token_ids
        return ids if len(ids) <= context else ids[-((context + 1) // 2) :]

    def guess(self, n: int) -> list[int]:
        """Draft up to `n` tokens by prompt lookup."""
        if self._lookup is None:
            self._lookup = Lookup(self.prompt_ids + self.token_ids)
        return self._lookup.guess(n) if n > 0 else []


def reading_batch(requests: list[Request], n_tokens: int) -> tuple[list[Request], int]:
    """The first of `requests`, and further ones that can be read with it, and how many tokens of each: the width.

    The number of requests times the width is at most `n_tokens`; only the first may be cut.
    """
    chosen: list[Request] = []
    width = 0
    for request in requests:
        wider = max(width, min(len(request.unread), n_tokens))
        if 0 < wider * (len(chosen) + 1) <= n_tokens:
            chosen, width = [*chosen, request], wider
    return chosen, width

"""The generation engine: continuous batching of many requests on one model.

Requests join, leave and are cancelled between steps (Orca, Yu et al. 2022). Prompts are prefilled in chunks, so that
a long prompt does not delay the requests that already write (Sarathi, Agrawal et al. 2023), and half of a chunk goes to
shorter prompts that wait behind it. A prefix shared with an earlier
sequence is reused from the cache (slots.py). Prompt lookup drafts tokens, so a step can accept several per request
(prompt_lookup.py).
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from gpt_core.common.errors import InputError
from gpt_core.generation.fast_model import cpu_threads, decode_threads
from gpt_core.generation.request import NO_SLOT, Request, reading_batch
from gpt_core.generation.sampling import SamplingParams, check_vocabulary, sample, token_logprobs
from gpt_core.generation.slots import Slots, n_shared
from gpt_core.model.cache import Cache
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.detokenizer import Detokenizer
from gpt_core.tokenizer.tokenizer import Tokenizer

MAX_DRAFT_STEP = 16  # tokens in a step with drafts; up to 16 a step takes hardly longer than with one
LARGE_STEP = 8  # tokens in the step that is timed to choose the threads of steps with more than 4 tokens


class Engine:
    """Continues many prompts concurrently with one model.

    Any thread may `submit` and `cancel`; one thread at a time calls `step`, `run` or `stream`.

    Args:
        model: is put into evaluation mode.
        tokenizer: the model's own.
        max_running: requests that share a step, each with a slot in the cache; further requests are queued.
        prefill_chunk: maximum number of prompt tokens prefilled in one step, padding included.
        context: tokens per request, prompt and answer together; the model's block_size if None. The cache
            takes 2 · n_layer · n_kv_head · head_dim numbers per token and slot.
        draft: maximum number of tokens drafted per request and step by prompt lookup; fewer where several requests
            share the 16 tokens of a step. It does not change the output. 0 is off.

    Attributes:
        cache: keys and values of `max_running` slots.
        slots: which tokens each slot has cached.
        eos_ids: ids of the end-of-text tokens.
        n_tokens: number of ids that can be sampled: the tokenizer's vocabulary without the model's padding.

    Raises:
        InputError: if max_running, prefill_chunk, context or draft is out of range.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_running: int = 8,
        prefill_chunk: int = 512,
        context: int | None = None,
        draft: int = 8,
    ) -> None:
        block_size = model.config.block_size
        self.context = block_size if context is None else context
        if max_running < 1:
            raise InputError(f"max_running is {max_running}; expected at least 1 request.")
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}; expected at least 1 token.")
        if not 1 <= self.context <= block_size:
            raise InputError(f"context is {self.context}; expected 1 to the model's {block_size} tokens.")
        if draft < 0:
            raise InputError(
                f"draft is {draft}; expected 0 (off) or the maximum number of tokens to draft in a step."
            )
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prefill_chunk = prefill_chunk
        self.draft = draft
        self.eos_ids = {*model.config.eos_ids, *tokenizer.eos_ids}
        # Vocabularies are padded to round sizes; ids that the tokenizer cannot decode must not be sampled.
        self.n_tokens = min(tokenizer.vocab_size, model.config.vocab_size)
        self.cache = Cache(
            model.config, max_running, device=model.device, dtype=model.dtype, length=self.context
        )
        self.slots = Slots(self.cache)
        # CPU threads of a decoding step of few tokens (False) and of many (True), timed at the first such step: a
        # request for one token takes the forward of its prompt alone.
        self._requests: list[Request] = []  # running and queued, in the order of arrival
        self._lock = threading.Lock()  # guards _requests

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Request:
        """Queue a prompt.

        Args:
            prompt: text or token ids.
            params: how to continue it; `SamplingParams()` if None.
            on_text: called with every new piece of text, in the thread that calls `step`. Pieces contain whole
                characters and no part of a stop string. An exception that it raises ends this request only.

        Raises:
            InputError: if the prompt is empty, has ids outside the vocabulary, or does not fit the context together
                with `max_new_tokens`; if `logit_bias` has ids outside the vocabulary.
        """
        request = self._request(prompt, params or SamplingParams(), on_text)
        with self._lock:
            self._requests.append(request)
        return request

    def _request(
        self, prompt: str | list[int], params: SamplingParams, on_text: Callable[[str], None] | None
    ) -> Request:
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, add_special_tokens=True)
        ids = list(prompt)
        if not ids:
            raise InputError("The prompt is empty; expected at least one token to continue.")
        last = self.n_tokens - 1
        if not 0 <= min(ids) <= max(ids) <= last:
            raise InputError(f"The prompt has token ids from {min(ids)} to {max(ids)}; expected 0 to {last}.")
        check_vocabulary(params, self.n_tokens)
        n_free = self.context - len(ids)
        if params.overflow == "error" and n_free < (params.max_new_tokens or 1):
            asked = (
                f"max_new_tokens is {params.max_new_tokens}" if params.max_new_tokens else "needs one more"
            )
            raise InputError(
                f"The prompt has {len(ids)} tokens and {asked}; the context holds {self.context} in all. Shorten "
                "the prompt or lower max_new_tokens."
            )
        detokenizer = Detokenizer(self.tokenizer.decode, params.stop, prompt=ids[-8:])
        return Request(ids, params, on_text, params.max_new_tokens or n_free, detokenizer)

    def cancel(self, request: Request) -> None:
        """End `request` at the next step and release its slot; no effect if it is done."""
        request.cancelled = True

    def abort(self, error: Exception) -> None:
        """End every request with `error` and drop its cached tokens, after `step` raised; in the thread that steps."""
        with self._lock:
            requests, self._requests = self._requests, []
        for request in requests:
            if request.slot != NO_SLOT:
                self.slots.cut(request.slot, 0)
            if not request.done:
                self._finish(request, error=error)

    def run(self) -> None:
        """Step until no request is left."""
        while self.step():
            pass

    def stream(
        self, prompt: str | list[int], params: SamplingParams | None = None
    ) -> Generator[str, None, None]:
        """Generate from one prompt and yield the text in pieces; it is submitted at the first `next`.

        Closing the generator early cancels the request.

        Raises:
            InputError: on the call, as `submit`.
            Exception: while iterating, the error that ended the request.
        """
        pieces: deque[str] = deque()
        request = self._request(prompt, params or SamplingParams(), pieces.append)

        def pull() -> Generator[str, None, None]:
            with self._lock:
                self._requests.append(request)
            try:
                while not request.done:
                    self.step()
                    while pieces:
                        yield pieces.popleft()
            finally:
                if not request.done:
                    self.cancel(request)
                    self.step()
            if request.error is not None:
                raise request.error

        return pull()

    @torch.inference_mode()
    def step(self) -> bool:
        """Admit queued requests, prefill a chunk of prompts, decode one or more tokens of each fully prefilled request.

        Returns:
            Whether a request is left.
        """
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            if request.cancelled:
                self._finish(request, "cancelled")
        self._admit([r for r in requests if r.slot == NO_SLOT and not r.done], requests)
        running = [r for r in requests if r.slot != NO_SLOT]
        self._prefill([r for r in running if r.unread])
        # Sorted by slot: contiguous slots are read from the cache without a copy.
        self._decode(sorted((r for r in running if not r.unread and not r.done), key=lambda r: r.slot))
        with self._lock:
            self._requests = [r for r in self._requests if not r.done]
            return bool(self._requests)

    def _admit(self, waiting: list[Request], requests: list[Request]) -> None:
        """Assign slots to queued requests, in the order of arrival."""
        for request in waiting:
            if not self.slots.any_idle:
                break
            ids = request.window(self.context)
            reading = [r for r in requests if r.unread]
            soon = max((n_shared(ids, r.window(self.context)) for r in reading), default=0)
            if soon > max(self.slots.n_cached(ids), 1):
                continue  # another request is prefilling the same prefix; wait and reuse it
            request.slot = self.slots.take(ids)
            request.n_reused = len(self.slots.ids[request.slot])
            request.unread = ids[request.n_reused :]

    def _prefill(self, requests: list[Request]) -> None:
        """Prefill the next prefill_chunk tokens of the prompts, in the order of arrival.

        While the first prompt takes several steps, prompts at most half as long share the step with it, the shortest
        first, and take up to half of the chunk: short prompts are read at once, a long one at half speed at least.
        """
        if not requests:
            return
        first, *others = requests
        others.sort(key=lambda r: len(r.unread))  # the shortest make the largest batch
        n_free = self.prefill_chunk
        if len(first.unread) <= n_free:
            self._read(*reading_batch([first, *others], n_free))
            return
        shorter = [r for r in others if 2 * len(r.unread) <= len(first.unread)]
        batch, width = reading_batch(shorter, n_free // 2)
        if batch:
            self._read(batch, width)
        self._read([first], n_free - len(batch) * width)

    def _read(self, chosen: list[Request], width: int) -> None:
        """Prefill the next `width` tokens of each of `chosen` in one forward; sample where a prompt ends."""
        with self._fail_on_error(chosen):
            chunks = [r.unread[:width] for r in chosen]
            hidden = self._forward(chosen, chunks)
            for request, chunk in zip(chosen, chunks, strict=True):
                del request.unread[: len(chunk)]
            ends = [b for b, request in enumerate(chosen) if not request.unread]  # whose prompt is complete
            if ends:
                rows = self._logits(hidden[ends, [len(chunks[b]) - 1 for b in ends]])
                for b, row in zip(ends, rows, strict=True):
                    self._extend(chosen[b], row)

    def _decode(self, requests: list[Request]) -> None:
        """One forward over the last token of every request and the tokens drafted after it."""
        for request in requests:
            if len(self.slots.ids[request.slot]) == self.context:  # overflow is "slide"
                self.slots.cut(request.slot, 0)
                request.unread = request.window(self.context)
        requests = [r for r in requests if not r.unread]
        if not requests:
            return
        n_draft = min(self.draft, MAX_DRAFT_STEP // len(requests) - 1)
        drafts = [self._draft(r, n_draft) if n_draft > 0 else [] for r in requests]
        with self._fail_on_error(requests):
            ids = [[r.token_ids[-1], *draft] for r, draft in zip(requests, drafts, strict=True)]
            many = 2 * sum(map(len, ids)) > LARGE_STEP
            with cpu_threads(decode_threads(self.model, LARGE_STEP if many else 1)):
                rows = self._logits(self._forward(requests, ids))
            for request, draft, logits in zip(requests, drafts, rows, strict=True):
                self._verify(request, draft, logits)

    def _draft(self, request: Request, n: int) -> list[int]:
        """Draft up to `n` tokens, limited by the context and by the request's max_new_tokens."""
        n_free = self.context - len(self.slots.ids[request.slot]) - 1
        return request.guess(min(n, n_free, request.max_new_tokens - len(request.token_ids) - 1))

    def _verify(self, request: Request, draft: list[int], logits: Tensor) -> None:
        """Sample from logits (1 + n_drafted, V) until a token differs from the draft; drop the rest from the cache."""
        n_before = len(self.slots.ids[request.slot]) - len(draft)
        slot = request.slot  # saved: a request that is done has released its slot
        for i, row in enumerate(logits[: len(draft) + 1]):
            self._extend(request, row)
            if request.done or (i < len(draft) and request.token_ids[-1] != draft[i]):
                if len(self.slots.ids[slot]) > n_before + i:  # empty if the request failed
                    self.slots.cut(slot, n_before + i)
                return

    def _forward(self, requests: list[Request], ids: list[list[int]]) -> Tensor:
        """Append `ids` (one list per request, padded to T) to the requests' slots; returns hidden states (B, T, C)."""
        slots = [r.slot for r in requests]
        n_new = [len(row) for row in ids]
        padded = [row + [0] * (max(n_new) - len(row)) for row in ids]
        rows = self.cache.rows(slots, n_new)
        hidden = self.model(torch.tensor(padded, device=self.model.device), cache=rows, logits=False).hidden
        for slot, new in zip(slots, ids, strict=True):
            self.slots.ids[slot] += new
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """Hidden states (…, C) → float32 logits (…, V), on the CPU so that a seed samples the same on all devices."""
        return self.model.logits(hidden)[..., : self.n_tokens].float().cpu()

    def _extend(self, request: Request, logits: Tensor) -> None:
        """Sample the next token from logits (V,), emit its text, and finish the request if it was the last token."""
        with self._fail_on_error([request]):
            params = request.params
            history = request.prompt_ids + request.token_ids if params.repetition_penalty != 1 else ()
            token = sample(logits, params, request.generator, history)
            if params.logprobs is not None:
                request.logprobs.append(token_logprobs(logits, token, params.logprobs))
            request.push(token)
            ended = token in self.eos_ids
            full = len(request.token_ids) >= request.max_new_tokens
            text = "" if ended else request.detokenizer.push(token)
            if ended or full:
                text += request.detokenizer.flush()
            if text:
                request.pieces.append(text)
                if request.on_text is not None:
                    request.on_text(text)
            if ended or request.detokenizer.stopped:
                self._finish(request, "stop")
            elif full:
                self._finish(request, "length")

    @contextmanager
    def _fail_on_error(self, requests: list[Request]) -> Iterator[None]:
        """On an exception in the block, end `requests` with it as their `error`; other requests continue."""
        try:
            yield
        except Exception as error:  # any: on_text is user code; the error is stored in the request
            for request in requests:
                if request.slot != NO_SLOT:
                    self.slots.cut(request.slot, 0)  # a failed forward may have left partial keys
                self._finish(request, error=error)

    def _finish(
        self,
        request: Request,
        reason: Literal["stop", "length", "cancelled"] | None = None,
        error: Exception | None = None,
    ) -> None:
        if request.slot != NO_SLOT:
            self.slots.release(request.slot)
            request.slot = NO_SLOT
        request.unread = []
        request.finish_reason, request.error = reason, error
        request.finished.set()

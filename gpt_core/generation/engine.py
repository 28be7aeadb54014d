"""The generation engine: many requests share one model, and none of them notices the others.

Continuous batching after Orca (Yu et al. 2022): between any two steps a request may join, leave or be cancelled. A
prompt is read in chunks, so that a long one does not keep the others waiting (Sarathi, Agrawal et al. 2023); what it
shares with an earlier text is not read again (slots.py). A step may give a request several tokens, where the first of
them confirm what was guessed (lookup.py).
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
from gpt_core.generation.request import NO_SLOT, Request
from gpt_core.generation.sampling import SamplingParams, check_vocabulary, sample, token_logprobs
from gpt_core.generation.slots import Slots, n_shared
from gpt_core.model.cache import Cache
from gpt_core.model.gpt import GPT
from gpt_core.tokenizer.detokenizer import Detokenizer
from gpt_core.tokenizer.tokenizer import Tokenizer

SHORT_STEP = 16  # tokens in all rows of a step up to which it takes hardly longer than with one
MANY = 8  # tokens in a step, for measuring how many threads are fastest with many; from half of that on it counts


class Engine:
    """Continues many prompts at once with one model.

    Any thread may `submit` and `cancel`; one thread at a time calls `step`, `run` or `stream`.

    Args:
        model: is put into evaluation mode.
        tokenizer: the model's own.
        max_running: requests that share a step, each with a slot in the cache; further ones wait their turn.
        prefill_chunk: tokens of prompts that are read in one step.
        context: tokens per request, prompt and answer together; the model's block_size if None. The cache
            takes 2 · n_layer · n_kv_head · head_dim numbers per token and slot.
        draft: tokens of a request that are guessed in one step where its text repeats itself (prompt lookup), fewer
            where several requests share the 16 tokens of a step; what comes out is the same. 0 guesses none.

    Raises:
        InputError: for a max_running, prefill_chunk, context or draft that is out of range.
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
            raise InputError(f"draft is {draft}; expected 0 (none) or how many tokens to guess in a step.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prefill_chunk = prefill_chunk
        self.draft = draft
        # Waking threads may pay for many tokens in a step where it does not for one.
        self.threads_for_one = self.threads_for_many = decode_threads(model)
        if max_running > 1 or draft:
            self.threads_for_many = decode_threads(model, MANY)
        self.eos_ids = {*model.config.eos_ids, tokenizer.eos_id} - {None}
        # Vocabularies are padded to round sizes; what the tokenizer cannot decode must not be drawn.
        self.n_tokens = min(tokenizer.vocab_size, model.config.vocab_size)
        self.cache = Cache(
            model.config, max_running, device=model.device, dtype=model.dtype, length=self.context
        )
        self.slots = Slots(self.cache)
        self._requests: list[Request] = []  # running and waiting, in the order of arrival
        self._lock = threading.Lock()  # guards the list

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams | None = None,
        on_text: Callable[[str], None] | None = None,
    ) -> Request:
        """Queue a prompt.

        Args:
            prompt: text, or the token ids of it.
            params: how to continue it; `SamplingParams()` if None.
            on_text: called with every new piece of text, by the thread that steps: never half a character,
                nothing of a stop string. What it raises ends this request only.

        Raises:
            InputError: if the prompt is empty, holds ids that the model does not know, or does not fit the context
                together with what `params` asks for; if `params` names tokens that are none.
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
        room = self.context - len(ids)
        if params.overflow == "error" and room < (params.max_new_tokens or 1):
            asked = (
                f"max_new_tokens is {params.max_new_tokens}" if params.max_new_tokens else "needs one more"
            )
            raise InputError(
                f"The prompt has {len(ids)} tokens and {asked}; the context holds {self.context} in all: shorten the "
                "prompt or ask for fewer."
            )
        detokenizer = Detokenizer(self.tokenizer.decode, params.stop, prompt=ids[-8:])
        return Request(ids, params, on_text, params.max_new_tokens or room, detokenizer)

    def cancel(self, request: Request) -> None:
        """End `request` at the next step and free its slot; nothing happens if it is done."""
        request.cancelled = True

    def run(self) -> None:
        """Step until no request is left."""
        while self.step():
            pass

    def stream(
        self, prompt: str | list[int], params: SamplingParams | None = None
    ) -> Generator[str, None, None]:
        """Submit one prompt when the first text is asked for, step until it is done, yield its text as it comes.

        Closing the generator early cancels the request.

        Raises:
            InputError: at once, as `submit` does.
            Exception: while iterating, what ended the request.
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
        """Admit waiting requests, read a chunk of prompts, give every running request one token or more.

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
        self._read([r for r in running if r.unread])
        # in the order of their slots: an unbroken run of slots is read where it lies, without a copy
        self._write(sorted((r for r in running if not r.unread and not r.done), key=lambda r: r.slot))
        with self._lock:
            self._requests = [r for r in self._requests if not r.done]
            return bool(self._requests)

    def _admit(self, waiting: list[Request], requests: list[Request]) -> None:
        """Give slots to waiting requests, in the order of arrival."""
        for request in waiting:
            if not self.slots.any_idle:
                break
            ids = request.window(self.context)
            reading = [r for r in requests if r.unread]
            soon = max((n_shared(ids, r.window(self.context)) for r in reading), default=0)
            if soon > max(self.slots.n_held(ids), 1):
                continue  # another is about to read the same beginning: it is read once, and this one waits for it
            request.slot = self.slots.take(ids)
            request.n_reused = len(self.slots.ids[request.slot])
            request.unread = ids[request.n_reused :]

    def _read(self, requests: list[Request]) -> None:
        """Read the next chunk of the first prompt, and of others beside it as far as the chunk has room."""
        chosen: list[Request] = []
        width = 0
        for request in requests:
            wider = max(width, min(len(request.unread), self.prefill_chunk))
            if wider * (len(chosen) + 1) <= self.prefill_chunk:
                chosen, width = [*chosen, request], wider
        if not chosen:
            return
        with self._ending(chosen):
            chunks = [r.unread[: self.prefill_chunk] for r in chosen]
            hidden = self._forward(chosen, chunks)
            for request, chunk in zip(chosen, chunks, strict=True):
                del request.unread[: len(chunk)]
            ends = [b for b, request in enumerate(chosen) if not request.unread]  # that get their first token
            if ends:
                rows = self._logits(hidden[ends, [len(chunks[b]) - 1 for b in ends]])
                for b, row in zip(ends, rows, strict=True):
                    self._extend(chosen[b], row)

    def _write(self, requests: list[Request]) -> None:
        """One forward over the last token of every request, and over what is guessed to follow it."""
        for request in requests:
            if len(self.slots.ids[request.slot]) == self.context:  # overflow is "slide"
                self.slots.cut(request.slot, 0)
                request.unread = request.window(self.context)
        requests = [r for r in requests if not r.unread]
        if not requests:
            return
        n_guesses = min(self.draft, SHORT_STEP // len(requests) - 1)
        guesses = [self._guess(r, n_guesses) if n_guesses > 0 else [] for r in requests]
        with self._ending(requests):
            ids = [[r.token_ids[-1], *guess] for r, guess in zip(requests, guesses, strict=True)]
            many = 2 * sum(map(len, ids)) > MANY
            with cpu_threads(self.threads_for_many if many else self.threads_for_one):
                rows = self._logits(self._forward(requests, ids))
            for request, guess, logits in zip(requests, guesses, rows, strict=True):
                self._check(request, guess, logits)

    def _guess(self, request: Request, n: int) -> list[int]:
        """Up to `n` tokens that may follow, as many as the request may still write and the context still holds."""
        room = self.context - len(self.slots.ids[request.slot]) - 1
        return request.guess(min(n, room, request.max_new_tokens - len(request.token_ids) - 1))

    def _check(self, request: Request, guess: list[int], logits: Tensor) -> None:
        """Draw tokens from logits (1 + n guesses, V) as long as they are the guessed ones; forget the other guesses."""
        n_before = len(self.slots.ids[request.slot]) - len(guess)
        slot = request.slot  # which it no longer has when it is done
        for i, row in enumerate(logits[: len(guess) + 1]):
            self._extend(request, row)
            if request.done or (i < len(guess) and request.token_ids[-1] != guess[i]):
                if len(self.slots.ids[slot]) > n_before + i:  # of a request that failed nothing is left
                    self.slots.cut(slot, n_before + i)
                return

    def _forward(self, requests: list[Request], ids: list[list[int]]) -> Tensor:
        """Continue the slots of `requests` by rows of `ids`, padded to T; their last states (B, T, C)."""
        slots = [r.slot for r in requests]
        n_new = [len(row) for row in ids]
        padded = [row + [0] * (max(n_new) - len(row)) for row in ids]
        rows = self.cache.rows(slots, n_new)
        hidden = self.model(torch.tensor(padded, device=self.model.device), cache=rows, logits=False).hidden
        for slot, new in zip(slots, ids, strict=True):
            self.slots.ids[slot] += new
        return hidden

    def _logits(self, hidden: Tensor) -> Tensor:
        """(…, C) → (…, V), on the CPU: there a seed draws the same tokens whatever device computes."""
        return self.model.logits(hidden)[..., : self.n_tokens].float().cpu()

    def _extend(self, request: Request, logits: Tensor) -> None:
        """Draw the next token from logits (V,), hand out its text, finish the request if it is the last."""
        with self._ending([request]):
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
    def _ending(self, requests: list[Request]) -> Iterator[None]:
        """Let whatever goes wrong inside end `requests`, and keep it in them; the others go on."""
        try:
            yield
        except Exception as error:  # anything: a callback is foreign code, and nothing is swallowed
            for request in requests:
                if request.slot != NO_SLOT:
                    self.slots.cut(request.slot, 0)  # who knows what a forward that failed has left there
                self._finish(request, error=error)

    def _finish(
        self,
        request: Request,
        reason: Literal["stop", "length", "cancelled"] | None = None,
        error: Exception | None = None,
    ) -> None:
        if request.slot != NO_SLOT:
            self.slots.give_back(request.slot)
            request.slot = NO_SLOT
        request.unread = []
        request.finish_reason, request.error = reason, error
        request.finished.set()

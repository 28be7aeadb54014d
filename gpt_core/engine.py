"""The generation engine: many requests share one model, and none of them notices the others.

Continuous batching after Orca (Yu et al. 2022): between any two steps a request may join, leave or be
cancelled. A prompt is read in chunks, so that a long one does not keep the others waiting (Sarathi, Agrawal
et al. 2023).
"""

import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Literal

import torch
from torch import Tensor

from gpt_core.cache import Cache
from gpt_core.detokenizer import Detokenizer
from gpt_core.errors import InputError
from gpt_core.model import GPT
from gpt_core.sampling import SamplingParams, sample
from gpt_core.tokenizer import Tokenizer


class Request:
    """A prompt on its way through the engine; made by `Engine.submit`.

    Attributes:
        params: how to continue the prompt.
        token_ids: the tokens so far, with the end-of-text token or those of the stop string that ended them.
        finish_reason: "stop" (end-of-text token or stop string), "length" (max_new_tokens or end of context),
            "cancelled", or None: not finished, or failed.
        error: what was raised by the model or by `on_text`, if that ended the request.
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
        self.finish_reason: Literal["stop", "length", "cancelled"] | None = None
        self.error: Exception | None = None
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
        self.slot: int | None = None  # in the cache; None while waiting and when done
        self.cancelled = False
        self.pieces: list[str] = []
        self.finished = threading.Event()

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


class Engine:
    """Continues many prompts at once with one model.

    Any thread may `submit` and `cancel`; one thread at a time calls `step`, `run` or `stream`.

    Args:
        model: is put into evaluation mode.
        tokenizer: the model's own.
        max_running: requests that share a step, each with a slot in the cache; further ones wait their turn.
        prefill_chunk: tokens of a prompt that are read in one step.
        context: tokens per request, prompt and answer together; the model's block_size if None. The cache
            takes 2 · n_layer · n_kv_head · head_dim numbers per token and slot.

    Raises:
        InputError: for a max_running, prefill_chunk or context that is out of range.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        max_running: int = 8,
        prefill_chunk: int = 512,
        context: int | None = None,
    ) -> None:
        block_size = model.config.block_size
        self.context = block_size if context is None else context
        if max_running < 1:
            raise InputError(f"max_running is {max_running}; expected at least 1 request.")
        if prefill_chunk < 1:
            raise InputError(f"prefill_chunk is {prefill_chunk}; expected at least 1 token.")
        if not 1 <= self.context <= block_size:
            raise InputError(f"context is {self.context}; expected 1 to the model's {block_size} tokens.")
        self.model = model.eval()
        self.tokenizer = tokenizer
        self.prefill_chunk = prefill_chunk
        self.eos_ids = {*model.config.eos_ids, tokenizer.eos_id} - {None}
        # Vocabularies are padded to round sizes; what the tokenizer cannot decode must not be drawn.
        self.n_tokens = min(tokenizer.vocab_size, model.config.vocab_size)
        dtype = model.wte.weight.dtype
        self.cache = Cache(model.config, max_running, device=model.device, dtype=dtype, length=self.context)
        self._free = list(range(max_running))[::-1]  # slots; the lowest is taken first
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
            InputError: if the prompt is empty, holds ids that the model does not know, or fills the context.
        """
        params = params or SamplingParams()
        if isinstance(prompt, str):
            prompt = self.tokenizer.encode(prompt, add_special_tokens=True)
        ids = list(prompt)
        if not ids:
            raise InputError("The prompt is empty; expected at least one token to continue.")
        last = self.model.config.vocab_size - 1
        if not 0 <= min(ids) <= max(ids) <= last:
            raise InputError(f"The prompt has token ids from {min(ids)} to {max(ids)}; expected 0 to {last}.")
        room = self.context - len(ids)
        if room < 1:
            raise InputError(
                f"The prompt has {len(ids)} tokens; the context holds {self.context} and the answer "
                "needs at least 1: shorten the prompt."
            )
        detokenizer = Detokenizer(self.tokenizer.decode, params.stop, prompt=ids[-8:])
        n_new = room if params.max_new_tokens is None else min(params.max_new_tokens, room)
        request = Request(ids, params, on_text, n_new, detokenizer)
        with self._lock:
            self._requests.append(request)
        return request

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
        """Submit one prompt, step until it is done, and yield its text as it comes.

        Closing the generator early cancels the request.

        Raises:
            InputError: at once, as `submit` does.
            Exception: while iterating, what ended the request.
        """
        pieces: deque[str] = deque()
        request = self.submit(prompt, params, on_text=pieces.append)

        def pull() -> Generator[str, None, None]:
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
        """Admit waiting requests, read at most one chunk of a prompt, give every running request one token.

        Returns:
            Whether a request is left.
        """
        with self._lock:
            requests = list(self._requests)
        for request in requests:
            if request.cancelled:
                self._finish(request, "cancelled")
            elif request.slot is None and self._free:
                request.slot = self._free.pop()
        running = [r for r in requests if r.slot is not None]
        reading = next((r for r in running if not r.token_ids), None)
        if reading is not None:
            self._prefill(reading)
        writing = [r for r in running if r.token_ids and not r.done]
        if writing:
            # in the order of their slots: an unbroken run of slots is read where it lies, without a copy
            self._decode(sorted(writing, key=lambda r: r.slot or 0))

        with self._lock:
            self._requests = [r for r in self._requests if not r.done]
            return bool(self._requests)

    def _prefill(self, request: Request) -> None:
        """Read the next chunk of the prompt; the last chunk gives the first token."""
        with self._ending([request]):
            begin = int(self.cache.lengths[request.slot])
            end = min(begin + self.prefill_chunk, request.n_prompt)
            hidden = self._forward([request], [request.prompt_ids[begin:end]])
            if end == request.n_prompt:
                self._extend(request, self._logits(hidden)[0])

    def _decode(self, requests: list[Request]) -> None:
        """One forward over the last token of every request."""
        with self._ending(requests):
            logits = self._logits(self._forward(requests, [r.token_ids[-1:] for r in requests]))
            for request, row in zip(requests, logits, strict=True):
                self._extend(request, row)

    def _forward(self, requests: list[Request], ids: list[list[int]]) -> Tensor:
        """Continue the slots of `requests` by `ids` (B, T); return the states of the last tokens (B, C)."""
        rows = self.cache.rows([r.slot for r in requests if r.slot is not None])
        return self.model(torch.tensor(ids, device=self.model.device), cache=rows, logits=False).hidden[:, -1]

    def _logits(self, hidden: Tensor) -> Tensor:
        """(B, C) → (B, V), on the CPU: there a seed draws the same tokens whatever device computes."""
        return self.model.logits(hidden)[:, : self.n_tokens].float().cpu()

    def _extend(self, request: Request, logits: Tensor) -> None:
        """Draw the next token from logits (V,), hand out its text, finish the request if it is the last."""
        with self._ending([request]):
            token = sample(logits, request.params, request.generator)
            request.token_ids.append(token)
            ended = token in self.eos_ids
            text = "" if ended else request.detokenizer.push(token)
            if ended or len(request.token_ids) >= request.max_new_tokens:
                text += request.detokenizer.flush()
            if text:
                request.pieces.append(text)
                if request.on_text is not None:
                    request.on_text(text)
            if ended or request.detokenizer.stopped:
                self._finish(request, "stop")
            elif len(request.token_ids) >= request.max_new_tokens:
                self._finish(request, "length")

    @contextmanager
    def _ending(self, requests: list[Request]) -> Iterator[None]:
        """Let whatever goes wrong inside end `requests`, and keep it in them; the others go on."""
        try:
            yield
        except Exception as error:  # anything: a callback is foreign code, and nothing is swallowed
            for request in requests:
                self._finish(request, error=error)

    def _finish(
        self,
        request: Request,
        reason: Literal["stop", "length", "cancelled"] | None = None,
        error: Exception | None = None,
    ) -> None:
        if request.slot is not None:
            self.cache.free(request.slot)
            self._free.append(request.slot)
            request.slot = None
        request.finish_reason, request.error = reason, error
        request.finished.set()

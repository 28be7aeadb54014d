"""The two threads that compute: one steps the generation engine while there are requests, one encodes and searches.

There are two because torch and FAISS use all cores from one thread, store their settings per thread, and are slower
when called from several threads at once.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

import torch

from gpt_core.common.errors import InputError
from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.sampling import SamplingParams
from serve.work.errors import GenerationError, OverloadedError, UnavailableError

P = ParamSpec("P")
T = TypeVar("T")


class SearchThread:
    """One thread that runs function calls in order; at most `max_waiting` of them run or wait.

    Raises:
        InputError: if `max_waiting` is less than 1.
    """

    def __init__(self, max_waiting: int = 64) -> None:
        if max_waiting < 1:
            raise InputError(f"max_requests is {max_waiting}; expected at least 1.")
        self.max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
        # A thread copies torch's number of CPU threads at its first use of torch. This must not happen while the engine
        # decodes with a single thread.
        self._pool.submit(torch.get_num_threads).result()
        self._free_slots = threading.BoundedSemaphore(max_waiting)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in the thread and await its result; cancelling the awaiting task drops a waiting call.

        Raises:
            OverloadedError: if max_waiting calls are running or waiting.
        """
        if not self._free_slots.acquire(blocking=False):
            raise OverloadedError(
                f"{self.max_waiting} searches are running or waiting already; try again later."
            )
        future = self._pool.submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: self._free_slots.release())
        return await asyncio.wrap_future(future)

    def close(self, last: Callable[[], None]) -> None:
        """Finish all calls, call `last` in the thread, and end the thread."""
        self._pool.submit(last).result()
        self._pool.shutdown()


class Worker:
    """The only thread that steps an engine. It sleeps while there are no requests.

    Args:
        engine: the generator; no other thread may step it.
        max_requests: maximum number of running and waiting requests; more are refused.
    """

    def __init__(self, engine: Engine, max_requests: int = 64) -> None:
        self.engine = engine
        self.max_requests = max_requests
        self._live: dict[Request, Callable[[], None]] = {}  # request → its on_done
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are accepted: the thread was started, is not closing, and has not died."""
        return self._thread.is_alive() and not self._closing

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        on_text: Callable[[str], None],
        on_done: Callable[[], None],
    ) -> Request:
        """Queue a prompt. The worker's thread calls both callbacks; `on_done` exactly once, after the last `on_text`.

        If a request is not `done` when `on_done` is called, the worker has died.

        Raises:
            InputError: as `Engine.submit` raises it.
            OverloadedError: if max_requests requests are running or waiting.
            UnavailableError: if the worker is not running.
        """
        with self._changed:
            if not self.alive:
                raise UnavailableError("The generation worker is not running; restart the server.")
            if len(self._live) >= self.max_requests:
                raise OverloadedError(
                    f"{self.max_requests} requests are running or waiting already; try again later."
                )
            request = self.engine.submit(prompt, params, on_text)
            self._live[request] = on_done
            self._changed.notify()
        return request

    def cancel(self, request: Request) -> None:
        """Cancel `request` at the next step; no effect if it is done."""
        self.engine.cancel(request)

    def cancel_all(self) -> None:
        """Cancel all requests at the next step, and accept no more."""
        with self._changed:
            self._closing = True
            for request in self._live:
                self.engine.cancel(request)
            self._changed.notify()

    def close(self) -> None:
        """Cancel all requests and end the thread."""
        self.cancel_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.engine.step()
                self._report(done_only=True)
        finally:  # also if an exception ends the thread, so that no client waits for ever
            with self._changed:
                self._closing = True
            self._report(done_only=False)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._live or self._closing)
            return bool(self._live)

    def _report(self, done_only: bool) -> None:
        with self._changed:
            ended = [r for r in self._live if r.done or not done_only]
            callbacks = [self._live.pop(r) for r in ended]
        for on_done in callbacks:
            on_done()


class TokenStream:
    """The text of one request as it is generated: `async for piece in stream`.

    Must be created in the event loop's thread. The creator must call `close`, which cancels an unfinished request.

    Raises:
        InputError, OverloadedError, UnavailableError: as `Worker.submit` raises them.
        GenerationError: while iterating, if the model failed.
        UnavailableError: while iterating, if the worker died or the server is shutting down.
    """

    def __init__(self, worker: Worker, prompt: str | list[int], params: SamplingParams) -> None:
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[str | None] = asyncio.Queue()

        def put(piece: str | None) -> None:
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

        self._pieces, self._worker = pieces, worker
        self.request = worker.submit(prompt, params, on_text=put, on_done=lambda: put(None))

    async def __aiter__(self) -> AsyncIterator[str]:
        while (piece := await self._pieces.get()) is not None:
            yield piece
        if self.request.error is not None:
            raise GenerationError(f"The generation failed: {self.request.error}") from self.request.error
        if not self.request.done:
            raise UnavailableError("The generation worker died during the request; restart the server.")
        if self.request.finish_reason == "cancelled":
            raise UnavailableError("The server is shutting down.")

    async def finish(self) -> str:
        """Wait for the end of the generation; returns the whole text."""
        async for _ in self:
            pass
        return self.request.text

    def close(self) -> None:
        """Cancel the request if it is not done."""
        self._worker.cancel(self.request)


async def merged(streams: Sequence[TokenStream]) -> AsyncIterator[tuple[int, str | None]]:
    """Yield (position of the stream, piece) from several streams as pieces arrive; the piece is None at a stream's end.

    Raises:
        GenerationError, UnavailableError: as `TokenStream` raises them.
    """

    async def following(pieces: AsyncIterator[str]) -> str | None:
        return await anext(pieces, None)

    iterators = [aiter(stream) for stream in streams]
    awaited = {asyncio.create_task(following(pieces)): place for place, pieces in enumerate(iterators)}
    try:
        while awaited:
            done, _ = await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            for task in sorted(done, key=awaited.__getitem__):
                place, piece = awaited.pop(task), task.result()
                yield place, piece
                if piece is not None:
                    awaited[asyncio.create_task(following(iterators[place]))] = place
    finally:
        for task in awaited:
            task.cancel()

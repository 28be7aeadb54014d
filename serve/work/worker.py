"""Two threads that do the heavy work, so that whoever asks for it never blocks an event loop.

`Worker` owns the generation engine and steps it while there is work. `SearchThread` runs everything else that computes:
encoding, searching, prompting. One thread each, because torch and FAISS use all cores from one thread, keep their
settings per thread, and slow each other down when several threads do.
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


class Worker:
    """The one thread that steps an engine. It sleeps while there is nothing to do.

    Args:
        engine: nobody else may step it.
        max_requests: running and waiting ones together; one more is refused.
    """

    def __init__(self, engine: Engine, max_requests: int = 64) -> None:
        self.engine = engine
        self.max_requests = max_requests
        self._live: dict[Request, Callable[[], None]] = {}  # with what to call when it is done
        self._closing = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Begin to work."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are taken: started, not closed, and not ended by an exception."""
        return self._thread.is_alive() and not self._closing

    def submit(
        self,
        prompt: str | list[int],
        params: SamplingParams,
        on_text: Callable[[str], None],
        on_done: Callable[[], None],
    ) -> Request:
        """Queue a prompt; both callbacks are called by the worker's thread, `on_done` exactly once and last.

        A request that is not `done` when `on_done` is called was lost with the worker.

        Raises:
            InputError: as `Engine.submit` does.
            OverloadedError: if max_requests are there already.
            UnavailableError: if the worker has ended.
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
        """End `request` at the next step; nothing happens if it is done."""
        self.engine.cancel(request)

    def cancel_all(self) -> None:
        """End all requests at the next step, and take no more."""
        with self._changed:
            self._closing = True
            for request in self._live:
                self.engine.cancel(request)
            self._changed.notify()

    def close(self) -> None:
        """Cancel what is left and end the thread."""
        self.cancel_all()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        try:
            while self._wait_for_work():
                self.engine.step()
                self._report(done_only=True)
        finally:  # also when an exception ends the thread: nobody may wait for ever
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
    """The text of one request as it is generated, for an event loop: `async for piece in stream`.

    Must be made on the event loop. Whoever makes it calls `close`, which cancels what is still running.

    Raises:
        InputError, OverloadedError, UnavailableError: as `Worker.submit` does.
        GenerationError: while iterating, if the model failed.
        UnavailableError: while iterating, if the worker ended before the text did.
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
            raise UnavailableError("The generation worker died while it wrote; restart the server.")
        if self.request.finish_reason == "cancelled":
            raise UnavailableError("The server is shutting down.")

    async def finish(self) -> str:
        """Wait for the end; the whole text."""
        async for _ in self:
            pass
        return self.request.text

    def close(self) -> None:
        """Cancel the request if it still runs."""
        self._worker.cancel(self.request)


async def merged(streams: Sequence[TokenStream]) -> AsyncIterator[tuple[int, str | None]]:
    """The pieces of several streams as they come, each with its stream's place; None at the end of each.

    Raises:
        GenerationError, UnavailableError: as a `TokenStream` does.
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


class SearchThread:
    """One thread that takes function calls in turn; at most `max_waiting` of them wait or run at a time.

    Raises:
        InputError: if that is none.
    """

    def __init__(self, max_waiting: int = 64) -> None:
        if max_waiting < 1:
            raise InputError(f"max_requests is {max_waiting}; expected at least 1.")
        self.max_waiting = max_waiting
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="search")
        # A thread takes over torch's number of CPU threads once, at its first use of torch. That may not be while the
        # engine decodes with a single one.
        self._pool.submit(torch.get_num_threads).result()
        self._room = threading.BoundedSemaphore(max_waiting)

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in the thread and await its result; if the awaiting task is cancelled before the call has
        begun, it never begins.

        Raises:
            OverloadedError: if max_waiting calls are there already.
        """
        if not self._room.acquire(blocking=False):
            raise OverloadedError(
                f"{self.max_waiting} searches are running or waiting already; try again later."
            )
        future = self._pool.submit(function, *args, **kwargs)
        future.add_done_callback(lambda _: self._room.release())
        return await asyncio.wrap_future(future)

    def close(self, last: Callable[[], None]) -> None:
        """Finish what is there, call `last` in the thread, and end it."""
        self._pool.submit(last).result()
        self._pool.shutdown()

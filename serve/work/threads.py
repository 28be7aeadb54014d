"""The generation thread, which steps the engine while there are requests, and the text of its requests as streams."""

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Sequence

from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.sampling import SamplingParams
from serve.work.errors import STOPPING, GenerationError, OverloadedError, UnavailableError

LOG = logging.getLogger(__name__)
FAILED = "The generator has failed and does not run any more; search does. Restart the server."
# The generation is given up after this many failures of the engine in a row, with no request completed between them.
MAX_FAILURES = 4


class Worker:
    """The only thread that steps an engine. It sleeps while there are no requests.

    If a step raises, all requests end with its error and the thread goes on; it ends after `MAX_FAILURES` such errors
    in a row.

    Args:
        engine: the generator; no other thread may step it.
        max_requests: maximum number of running and waiting requests; more are refused.
    """

    def __init__(self, engine: Engine, max_requests: int = 64) -> None:
        self.engine = engine
        self.max_requests = max_requests
        self._live: dict[Request, Callable[[], None]] = {}  # request → its on_done
        self._n_entering = 0  # requests between the check of the limit and `_live`
        self._n_failures = 0  # steps that raised since the last completed request
        self._ended: str | None = None  # why no requests are accepted any more
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether requests are accepted: the thread was started, is not closing, and has not died."""
        return self._thread.is_alive() and self._ended is None

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
            self.check_alive()
            if len(self._live) + self._n_entering >= self.max_requests:
                raise OverloadedError(
                    f"{self.max_requests} requests are running or waiting already; try again later."
                )
            self._n_entering += 1
        try:  # without the lock, for which the thread would wait: the engine checks the whole prompt
            request = self.engine.submit(prompt, params, on_text)
        finally:
            with self._changed:
                self._n_entering -= 1
        with self._changed:
            self.check_alive()  # the thread may have ended meanwhile
            self._live[request] = on_done
            self._changed.notify()
        return request

    def check_alive(self) -> None:
        """Raise UnavailableError if requests are not accepted."""
        if not self.alive:
            raise UnavailableError(self._ended or FAILED)

    def cancel(self, request: Request) -> None:
        """Cancel `request` at the next step; no effect if it is done."""
        self.engine.cancel(request)

    def cancel_all(self) -> None:
        """Cancel all requests at the next step, and accept no more."""
        with self._changed:
            self._ended = self._ended or STOPPING
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
                try:
                    self.engine.step()
                except Exception as error:  # a bug: errors of one request are caught in the engine
                    LOG.exception("A step of the generator failed, and all running generations with it")
                    self.engine.abort(error)
                    self._n_failures += 1
                    if self._n_failures == MAX_FAILURES:
                        return
                self._report(done_only=True)
        finally:  # also if an exception ends the thread, so that no client waits for ever
            with self._changed:
                self._ended = self._ended or FAILED
            self._report(done_only=False)

    def _wait_for_work(self) -> bool:
        with self._changed:
            self._changed.wait_for(lambda: self._live or self._ended)
            return bool(self._live)

    def _report(self, done_only: bool) -> None:
        with self._changed:
            ended = [r for r in self._live if r.done or not done_only]
            callbacks = [self._live.pop(r) for r in ended]
        if any(r.finish_reason in ("stop", "length") for r in ended):
            self._n_failures = 0
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
            raise UnavailableError(FAILED)
        if self.request.finish_reason == "cancelled":
            raise UnavailableError(STOPPING)

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

"""The thread that owns the generation engine and steps it while there are requests.

There is one thread for generation and one for search (search_thread.py), because torch and FAISS use all cores from one
thread, store their settings per thread, and are slower when called from several threads at once.
"""

import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from gpt_core.generation.engine import Engine, Request
from gpt_core.generation.sampling import SamplingParams
from serve.work.errors import OverloadedError, UnavailableError

P = ParamSpec("P")
T = TypeVar("T")


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

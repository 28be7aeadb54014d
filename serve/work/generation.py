"""The thread that owns the generation engine and steps it while there is work.

One thread for generation and one for search (search_thread.py), because torch and FAISS use all cores from one thread,
keep their settings per thread, and slow each other down when several threads do.
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

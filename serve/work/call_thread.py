"""Threads that run function calls in order.

One encodes and searches, because torch and FAISS use all cores from one thread, store their settings per thread, and
are slower when called from several threads at once. Another one tokenises, so that long texts do not delay searches.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

import torch

from gpt_core.common.errors import InputError
from serve.work.errors import STOPPING, OverloadedError, UnavailableError

P = ParamSpec("P")
T = TypeVar("T")


class CallThread:
    """One thread that runs function calls in order, for at most `max_waiting` requests at a time.

    The thread is a daemon, so that a long call does not keep the process from ending.

    Args:
        name: the thread's name.
        max_waiting: maximum number of requests whose calls are running or waiting; more are refused.

    Raises:
        InputError: if `max_waiting` is less than 1.
    """

    def __init__(self, name: str, max_waiting: int = 64) -> None:
        if max_waiting < 1:
            raise InputError(f"max_requests is {max_waiting}; expected at least 1.")
        self.max_waiting = max_waiting
        self.busy = False
        self._places = threading.BoundedSemaphore(max_waiting)
        self._calls: SimpleQueue[tuple[Future[Any], Callable[[], Any]] | None] = SimpleQueue()
        self._closed = False
        self._lock = (
            threading.Lock()
        )  # guards _closed: the last call is neither followed by others nor dropped
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()
        # A thread copies torch's number of CPU threads at its first use of torch. This must not happen while the engine
        # decodes with a single thread.
        self._submit(torch.get_num_threads).result()

    async def run(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call `function` in the thread and await its result; errors as `run_each`."""
        (result,) = await self.run_each([partial(function, *args, **kwargs)])
        return result

    async def run_each(self, calls: Iterable[Callable[[], T]]) -> list[T]:
        """Await each of `calls` in order. They take one place together; other requests' calls run between them.

        Cancelling the awaiting task drops the calls that are not running yet.

        Raises:
            OverloadedError: if max_waiting requests are running or waiting; before the first call.
            UnavailableError: after `close`.
        """
        if not self._places.acquire(blocking=False):
            raise OverloadedError(
                f"{self.max_waiting} requests are running or waiting already; try again later."
            )
        results: list[T] = []
        future: Future[T] = Future()
        future.set_result(None)  # type: ignore[arg-type]
        try:
            for call in calls:
                future = self._submit(call)
                results.append(await asyncio.wrap_future(future))
        finally:  # a running call of a cancelled request keeps its place until it ends
            future.add_done_callback(lambda _: self._places.release())
        return results

    def drop_waiting(self) -> None:
        """End all calls that are not running yet with an UnavailableError."""
        with self._lock:
            if not self._closed:
                self._drop()

    def close(self, last: Callable[[], None], seconds: float | None = None) -> None:
        """Drop waiting calls, let the running one end, call `last` in the thread, and end the thread.

        Args:
            last: the last call.
            seconds: maximum time to wait; a call that runs longer is followed by `last` as long as the process lives.
        """
        with self._lock:
            self._closed = True
            self._drop()
            self._calls.put((Future(), last))
            self._calls.put(None)
        self._thread.join(seconds)

    def _drop(self) -> None:
        with contextlib.suppress(Empty):
            while waiting := self._calls.get_nowait():
                if waiting[0].set_running_or_notify_cancel():
                    waiting[0].set_exception(UnavailableError(STOPPING))

    def _submit(self, call: Callable[[], T]) -> Future[T]:
        future: Future[T] = Future()
        with self._lock:
            if self._closed:
                raise UnavailableError(STOPPING)
            self._calls.put((future, call))
        return future

    def _run(self) -> None:
        while waiting := self._calls.get():
            future, call = waiting
            if future.set_running_or_notify_cancel():
                self.busy = True
                try:
                    future.set_result(call())
                except BaseException as error:
                    future.set_exception(error)
                self.busy = False
            del waiting, future, call  # the result is not kept until the next call

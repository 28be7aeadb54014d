"""The thread that encodes, searches and builds prompts."""

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch

from gpt_core.common.errors import InputError
from serve.work.errors import OverloadedError
from serve.work.generation import P, T


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

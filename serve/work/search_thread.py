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

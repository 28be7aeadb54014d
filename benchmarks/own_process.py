"""Run a measurement in a process of its own."""

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any


def in_own_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a module's function in a new process, so that nothing it compiles, allocates or sets stays behind."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()

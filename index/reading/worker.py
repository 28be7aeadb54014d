"""A process that reads files for this one: a file can neither end this program nor take all its memory and time."""

import contextlib
import faulthandler
import multiprocessing
import os
import signal
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from index.reading.formats.extracted import Unreadable

# Limits of one file; a manual of 2,400 pages takes 7 s, 40,000 paragraphs in DOCX 13 s.
SECONDS, SECONDS_PER_MB = 60.0, 10.0
MAX_MEMORY = 4 << 30  # bytes beyond those that the program has already


class _Worker:
    def __init__(self) -> None:
        context = multiprocessing.get_context("fork")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=_serve, args=(other, self.connection), daemon=True)
        self.process.start()
        other.close()

    def end(self) -> None:
        self.process.kill()
        self.process.join()
        self.connection.close()


_worker: _Worker | None = None


def in_worker(function: Callable[[Path], Any], path: Path) -> Any:
    """What `function(path)` returns or raises, in another process where the system can fork.

    Raises:
        Unreadable: if it takes too long or too much memory, or ends the process.
    """
    global _worker
    if "fork" not in multiprocessing.get_all_start_methods():
        return function(path)
    if _worker is None:
        _worker = _Worker()
    limit = SECONDS + SECONDS_PER_MB * os.stat(path).st_size / 1e6
    try:
        _worker.connection.send((function, path))
        if not _worker.connection.poll(limit):
            raise TimeoutError
        failed, value = _worker.connection.recv()
    except TimeoutError:
        stop_worker()
        raise Unreadable(f"reading it took more than {limit:.0f} s.") from None
    except (EOFError, ConnectionError):
        stop_worker()
        raise Unreadable(
            f"its reader crashed, or needed more than {MAX_MEMORY >> 30} GB of memory; the file may be damaged."
        ) from None
    except BaseException:
        stop_worker()  # an answer to this call must not be taken for one to the next
        raise
    if failed:
        raise value
    return value


def stop_worker() -> None:
    """End the process; the next call starts another."""
    global _worker
    if _worker is not None:
        _worker.end()
        _worker = None


def _serve(connection: Connection, other: Connection) -> None:
    """Answer calls until the other end is closed."""
    other.close()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of a terminal: the parent ends, and this process with it
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    faulthandler.disable()
    _limit_memory()
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # a crash of a library is reported by the parent
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            function, path = connection.recv()
            try:
                answer = (False, function(path))
            except MemoryError:
                answer = (True, Unreadable(f"it needs more than {MAX_MEMORY >> 30} GB of memory."))
            except Exception as error:
                answer = (True, error)
            connection.send(answer)


def _limit_memory() -> None:
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + MAX_MEMORY
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    except (ImportError, OSError, ValueError):  # not on this system
        pass

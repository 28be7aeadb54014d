"""The path of one question through the files of index and serve, from the HTTP handler to the answer, is short."""

import dis
import inspect
import sys
import threading
from collections import Counter
from itertools import groupby
from pathlib import Path
from types import FrameType
from typing import Any

import httpx

from tests.serve.conftest import QUESTION, SAYS

ROOT = Path(__file__).parents[2]
SUSPENDING = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR


class Trace:
    """Records the calls and returns of functions in index and serve, in all threads started while it is set.

    Python's profiler reports a suspended coroutine or generator as returned; such a frame counts as active to its end.
    """

    def __init__(self) -> None:
        self.on = False
        self.events: list[tuple[bool, str, str, int]] = []  # is a call, file, function, frame
        self._lock = threading.Lock()

    def __call__(self, frame: FrameType, event: str, arg: Any) -> None:
        code = frame.f_code
        path = Path(code.co_filename)
        if not self.on or event not in ("call", "return") or not path.is_relative_to(ROOT):
            return
        file = path.relative_to(ROOT).as_posix()
        if file.startswith(("index/", "serve/")):
            suspends = event == "return" and code.co_flags & SUSPENDING
            if not suspends or code.co_code[frame.f_lasti] == dis.opmap["RETURN_VALUE"]:
                with self._lock:
                    self.events.append((event == "call", file, code.co_qualname, id(frame)))

    def stays(self) -> list[str]:
        """The files in the order of entering, from the handler on.

        A file is entered when a function that was not called before is called while no function of the file is active.
        """
        begin = next(
            i for i, event in enumerate(self.events) if event[1:3] == ("serve/api/answer.py", "answer")
        )
        active, called, frames, files = Counter[str](), set(), set(), []
        for is_call, file, function, frame in self.events[begin:]:
            if not is_call and (frame, function) in frames:
                frames.discard((frame, function))
                active[file] -= 1
            elif is_call and (frame, function) not in frames:  # not resumed
                if not active[file] and (file, function) not in called and "<" not in function:
                    files.append(file)
                frames.add((frame, function))
                called.add((file, function))
                active[file] += 1
        return [file for file, _ in groupby(files)]


def test_a_question_enters_few_files_and_seldom_returns_to_one(serve: Any) -> None:
    trace = Trace()
    before = sys.getprofile(), threading.getprofile()
    sys.setprofile(trace)
    threading.setprofile(trace)  # for the threads of the server, which start now
    try:
        url, _ = serve(SAYS)
        for _ in range(2):  # the second question finds the index opened
            trace.on, trace.events = True, []
            response = httpx.post(f"{url}/v1/answer", json={"question": QUESTION}, timeout=60)
            trace.on = False
        assert response.json()["kind"] in ("quote", "perhaps")
    finally:
        sys.setprofile(before[0])
        threading.setprofile(before[1])
    stays = trace.stays()
    assert len(set(stays)) <= 26, stays
    assert len(stays) - len(set(stays)) <= 19, "\n".join(stays)

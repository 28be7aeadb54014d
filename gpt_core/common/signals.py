"""Ctrl-C and SIGTERM as a wish that training grants at the next step's end."""

import signal
import sys
import threading
from types import FrameType, TracebackType


class StopSignal:
    """While the block runs, SIGINT and SIGTERM only set `asked`; a second SIGINT acts at once.

    A second SIGTERM does not: torchrun sends one of its own after the scheduler's, and both mean the same. Signals
    reach the main thread alone; in any other thread this does nothing.
    """

    def __init__(self) -> None:
        self.asked = 0  # the signal's number; 0: none came
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.getsignal(number)  # first: a signal may come at once
                signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._before:
            self._restore(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.asked = max(self.asked, number)
        if number == signal.SIGINT:
            self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._before[number])  # type: ignore[arg-type]


def act(asked: int) -> None:
    """Do what a signal asked for; nothing for 0.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: with 143 for SIGTERM, so that a scheduler knows that it stopped the job itself.
    """
    if asked == signal.SIGINT:
        raise KeyboardInterrupt
    if asked:
        sys.exit(128 + asked)

"""Ctrl-C and SIGTERM as a wish that training grants at the next step's end."""

import signal
import sys
import threading
from types import FrameType, TracebackType


class StopSignal:
    """While the block runs, the first SIGINT or SIGTERM only sets `asked`; a second one acts at once.

    Signals reach the main thread alone; in any other thread this does nothing.
    """

    def __init__(self) -> None:
        self.asked: int | None = None  # the signal's number
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def act(self) -> None:
        """Do what the signal asked for.

        Raises:
            KeyboardInterrupt: for SIGINT.
            SystemExit: with 143 for SIGTERM, so that a scheduler knows that it stopped the job itself.
        """
        if self.asked == signal.SIGINT:
            raise KeyboardInterrupt
        if self.asked is not None:
            sys.exit(128 + self.asked)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.asked = number
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before.clear()

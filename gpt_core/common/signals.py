"""Defer SIGINT (Ctrl-C) and SIGTERM, such as to the end of a training step or of an answer in `chat`."""

import signal
import sys
import threading
from types import FrameType, TracebackType


class StopSignal:
    """While the block runs, SIGINT and SIGTERM only set `received`; a second SIGINT raises at once.

    A second SIGTERM does not, since torchrun sends another one after the scheduler's. Python delivers signals to the
    main thread only; in other threads this does nothing.

    Attributes:
        received: the number of the signal, or 0.
    """

    def __init__(self) -> None:
        self.received = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "StopSignal":
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                # before the handler is set: a signal may come at once
                self._before[number] = signal.getsignal(number)
                signal.signal(number, self._receive)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number in self._before:
            self._restore(number)

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = max(self.received, number)
        if number == signal.SIGINT:
            self._restore(number)

    def _restore(self, number: int) -> None:
        signal.signal(number, self._before[number])  # type: ignore[arg-type]


def raise_for_signal(received: int) -> None:
    """Raise the exception of a deferred signal; nothing for 0.

    Raises:
        KeyboardInterrupt: for SIGINT.
        SystemExit: with status 143 for SIGTERM, by which a scheduler recognises its own signal.
    """
    if received == signal.SIGINT:
        raise KeyboardInterrupt
    if received:
        sys.exit(128 + received)

"""SIGTERM and Ctrl-C: what runs is finished and saved, then the program ends."""

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

SIGNALS = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
INTERRUPTED = 130  # what shells report of a program that Ctrl-C ended


class Stopped(BaseException):
    """Ends a program that was asked to stop; its text tells what is saved."""


class Requests:
    """What this process was asked for; signals are of a whole process, and so is this."""

    def __init__(self) -> None:
        self.first: int | None = None
        """The signal that came first."""
        self.deferred = False
        """Whether a part of the program looks at :meth:`asked` itself, and is not interrupted."""

    def asked(self) -> bool:
        """Whether the program is to stop."""
        return self.first is not None

    def code(self) -> int:
        """How the program exits: scheduling systems take 0 for what ended as it should."""
        return INTERRUPTED if self.first == signal.SIGINT else 0

    def name(self) -> str:
        """The signal's name for a person."""
        return SIGNALS[signal.Signals(self.first or signal.SIGTERM)]

    def receive(self, number: int, frame: FrameType | None) -> None:
        """Python's handler; it runs between two steps of the interpreter."""
        if self.first is None:
            self.first = number
            if not self.deferred:
                raise Stopped("what it had finished is in its folder")


REQUESTS = Requests()


@contextlib.contextmanager
def handled() -> Iterator[None]:
    """While it lasts, SIGTERM and Ctrl-C raise :class:`Stopped`, or wait for a deferring block.

    Ctrl-C after either of them ends the process at once, also in the middle of a long call.
    """
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    REQUESTS.first = None
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = {number: signal.signal(number, REQUESTS.receive) for number in SIGNALS}
    # The interpreter writes there at once, whatever the main thread is doing.
    woken = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(reader,), daemon=True).start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(woken)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(writer)


@contextlib.contextmanager
def deferred() -> Iterator[None]:
    """A block that asks :meth:`Requests.asked` by itself, and says afterwards what it saved."""
    REQUESTS.deferred = True
    try:
        yield
    finally:
        REQUESTS.deferred = False


def _watch(reader: int) -> None:
    """Ends the process at a Ctrl-C that is not the first signal."""
    stopping = False
    while number := os.read(reader, 1):
        if stopping and number[0] == signal.SIGINT:
            os._exit(INTERRUPTED)
        stopping = True
    os.close(reader)

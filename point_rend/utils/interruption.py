"""Signals that end a command, as exceptions: like Ctrl-C, they let it clean up."""

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

NAMES = ("SIGTERM", "SIGHUP")  # a scheduler or `kill`; a closed terminal


class Terminated(KeyboardInterrupt):
    """The process received a signal.

    Attributes:
        number: Of the signal.
    """

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


@contextlib.contextmanager
def terminable() -> Iterator[None]:
    """Let SIGTERM and SIGHUP raise :class:`Terminated` inside a block of the main thread.

    Signals that the process ignores, as under `nohup`, stay ignored.
    """
    numbers = [getattr(signal, name) for name in NAMES if hasattr(signal, name)]
    former = {x: signal.getsignal(x) for x in numbers if signal.getsignal(x) != signal.SIG_IGN}
    for number in former:
        signal.signal(number, _raise)
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _raise(number: int, _frame: FrameType | None) -> NoReturn:
    raise Terminated(number)

"""Signals that ask a command to end, and child processes that end with their parent."""

import contextlib
import ctypes
import multiprocessing
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

from point_rend.utils.errors import INTERRUPTED, signal_exit_code
from point_rend.utils.program import program

ALWAYS_HEEDED = ("SIGTERM", "SIGINT")
# A closed terminal, and SLURM's warning before the time limit. `nohup` ignores the first.
HEEDED_UNLESS_IGNORED = ("SIGHUP", "SIGUSR1")
PR_SET_PDEATHSIG = 1  # of Linux' prctl

# A terminal and a launcher may both forward a request: signals within so many seconds are one.
SAME_REQUEST = 1.0

HANDLED_SECONDS = 10.0  # for a main thread to handle a signal, an import of PyTorch included
RESPONSE_SECONDS = 1.0  # for a main thread that does not hang to end by a second signal
POLL_SECONDS = 0.5
END = bytes([0])  # not the number of a signal

# Signals that ask a command to end.
SIGNALS = tuple(
    getattr(signal, name)
    for name in (*ALWAYS_HEEDED, *HEEDED_UNLESS_IGNORED)
    if hasattr(signal, name)
    and (name in ALWAYS_HEEDED or signal.getsignal(getattr(signal, name)) != signal.SIG_IGN)
)


@contextlib.contextmanager
def signals_end_the_command(when: str = "", *, reported: bool = True) -> Iterator[None]:
    """End the command with one line and exit code 128 + n if signal n arrives inside a block.

    A second signal ends the process at once, and so does a thread if the main thread hangs in a
    library, where Python handles no signal. Outside the main thread, signals keep their effects.

    Args:
        when: Follows the name of the signal in the line, such as "before the first image".
        reported: Whether to print the line; one process of several is enough.

    Raises:
        SystemExit: When a signal arrives.
    """
    noted = 0.0

    def report(words: str) -> None:
        if reported:
            write_line(f"{program()}: {words} {when}".rstrip())

    def end(number: int, _frame: FrameType | None) -> None:
        nonlocal noted
        noted = time.monotonic()
        signal.signal(number, signal.SIG_DFL)
        if number == signal.SIGINT:
            raise KeyboardInterrupt  # which third parties know
        report(f"stopped by {signal.Signals(number).name}")
        raise SystemExit(signal_exit_code(number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heeded = [
        number
        for number in SIGNALS
        if number != signal.SIGINT or signal.getsignal(number) == signal.default_int_handler
    ]
    former = {number: signal.signal(number, end) for number in heeded}

    def is_stuck(first: float) -> bool:
        return not noted and time.monotonic() - first > HANDLED_SECONDS

    try:
        with watching(is_stuck, lambda: noted):
            yield
    except KeyboardInterrupt as error:
        report("interrupted")
        raise SystemExit(INTERRUPTED) from error
    finally:
        for number, handler in former.items():
            if signal.getsignal(number) in (end, signal.SIG_DFL):
                signal.signal(number, handler)


@contextlib.contextmanager
def watching(is_stuck: Callable[[float], bool], noted: Callable[[], float]) -> Iterator[None]:
    """Run a thread that ends the process if its main thread hangs and handles no signal.

    Inside the block, forks of this process end with it and leave all signals but SIGTERM to it.

    Args:
        is_stuck: Whether to end the process, given the time of the first signal.
        noted: Returns the time at which the main thread handled the last signal.
    """
    global _forks_belong_to
    former_owner, _forks_belong_to = _forks_belong_to, os.getpid()
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread = threading.Thread(target=_watch, args=(reader, is_stuck, noted), daemon=True)
    thread.start()
    try:
        yield
    finally:
        _forks_belong_to = former_owner
        signal.set_wakeup_fd(former)
        os.write(writer, END)  # forks may have the writer, too, so closing it would not do
        thread.join()
        os.close(writer)
        os.close(reader)


def _watch(reader: int, is_stuck: Callable[[float], bool], noted: Callable[[], float]) -> None:
    first: tuple[int, float] | None = None
    second: tuple[int, float] | None = None
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    while True:
        timeout = None if first is None else POLL_SECONDS
        arrived = os.read(reader, 1) if select.select([reader], [], [], timeout)[0] else b""
        if arrived == END:
            return
        now = time.monotonic()
        number = arrived[0] if arrived else 0
        if number in SIGNALS and signal.getsignal(number) == handlers[number]:
            if first is None:
                first = number, now
            elif now - first[1] > SAME_REQUEST:
                second = second or (number, now)
        if second is not None and now - second[1] > RESPONSE_SECONDS:
            if noted() < second[1] - RESPONSE_SECONDS:
                _end_stuck(second[0], "a second")
            second = None  # the main thread ends by it
        if first is not None and is_stuck(first[1]):
            _end_stuck(first[0], "a lack of progress after")


def _end_stuck(number: int, why: str) -> None:
    kill_daemons()
    name = signal.Signals(number).name
    write_line(f"{program()}: ended by {why} {name}")
    os._exit(signal_exit_code(number))


def write_line(line: str) -> None:
    """Write a line to stderr from a signal handler, which may have interrupted a print.

    The terminal may be gone, and Ctrl-C ends a `tee` as well.
    """
    with contextlib.suppress(OSError):
        os.write(2, f"{line}\n".encode())


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait until the end of a block; a process that it starts has them blocked.

    Blocking alone would not do here: other threads take a signal, and the main one handles it.
    """
    arrived: list[int] = []
    in_main_thread = threading.current_thread() is threading.main_thread()
    handlers = {number: signal.getsignal(number) for number in SIGNALS if in_main_thread}
    for number in handlers:
        signal.signal(number, lambda number, _frame: arrived.append(number))
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for number in arrived:
            os.kill(os.getpid(), number)


def end_with_parent(parent: int, number: int = signal.SIGKILL) -> None:
    """Make this process get a signal when its parent ends, however that ends (Linux only).

    Args:
        parent: Process id of the parent, which may have ended already.
        number: The signal.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os.kill(os.getpid(), number)


def kill_daemons() -> None:
    """Kill the processes that would end with this one anyway, such as data workers, stuck or not.

    At the end of a process, `multiprocessing` asks them to end and waits for them.
    """
    daemons = [child for child in multiprocessing.active_children() if child.daemon]
    for child in daemons:
        child.kill()
    for child in daemons:
        child.join()


_forks_belong_to = 0  # a process that is being watched


def _begin_fork() -> None:
    """Give a fork of a listening process other signal handlers, and an end with its parent."""
    global _forks_belong_to
    parent, _forks_belong_to = _forks_belong_to, 0
    if not parent:
        return
    with contextlib.suppress(ValueError):  # not the main thread
        signal.set_wakeup_fd(-1)
        for number in SIGNALS:
            signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    end_with_parent(parent)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_fork)

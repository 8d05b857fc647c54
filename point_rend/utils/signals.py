"""Signals that ask a command to end, and child processes that end with their parent."""

import contextlib
import ctypes
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

from point_rend.utils.errors import INTERRUPTED, signal_exit_code
from point_rend.utils.program import program

ALWAYS_HEEDED = ("SIGTERM", "SIGINT")
# A closed terminal, and SLURM's warning before the time limit. `nohup` ignores the first.
HEEDED_UNLESS_IGNORED = ("SIGHUP", "SIGUSR1")
PR_SET_PDEATHSIG = 1  # of Linux' prctl

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

    A second signal ends the process at once. Outside the main thread, signals keep their effects.

    Args:
        when: Follows the name of the signal in the line, such as "before the first image".
        reported: Whether to print the line; one process of several is enough.

    Raises:
        SystemExit: When a signal arrives.
    """
    process = os.getpid()

    def report(words: str) -> None:
        if reported:
            # Not print: the signal may have interrupted one. The terminal may be gone.
            with contextlib.suppress(OSError):
                os.write(2, f"{program()}: {words} {when}".rstrip().encode() + b"\n")

    def end(number: int, _frame: FrameType | None) -> None:
        if os.getpid() != process:
            return
        signal.signal(number, signal.SIG_DFL)
        report(f"stopped by {signal.Signals(number).name}")
        raise SystemExit(signal_exit_code(number))

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    # Ctrl-C raises KeyboardInterrupt, which third parties know.
    heeded = [number for number in SIGNALS if number != signal.SIGINT]
    former = {number: signal.signal(number, end) for number in heeded}
    try:
        yield
    except KeyboardInterrupt as error:
        report("interrupted")
        raise SystemExit(INTERRUPTED) from error
    finally:
        for number, handler in former.items():
            if signal.getsignal(number) == end:
                signal.signal(number, handler)


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """Let signals wait until the end of a block; a process that it starts has them blocked."""
    former = signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, former)


def end_with_parent(parent: int) -> None:
    """Make this process end when its parent does, however that ends; it is killed (Linux only).

    Args:
        parent: Process id of the parent, which may have ended already.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_daemons() -> None:
    """Kill the processes that would end with this one anyway, such as data workers, stuck or not.

    At the end of a process, `multiprocessing` asks them to end and waits for them.
    """
    daemons = [child for child in multiprocessing.active_children() if child.daemon]
    for child in daemons:
        child.kill()
    for child in daemons:
        child.join()

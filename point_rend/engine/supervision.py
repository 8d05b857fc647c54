"""Supervision of the processes of a run by the one that started them.

Signals are forwarded, processes that are silent are named, and none outlives its launcher.
"""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator, MutableSequence, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import FrameType
from typing import NoReturn

from torch.multiprocessing.spawn import ProcessContext, ProcessExitedException

from point_rend.engine.signals import GRACE, STUCK_SECONDS
from point_rend.utils import progress
from point_rend.utils.children import guarded
from point_rend.utils.errors import signal_exit_code
from point_rend.utils.program import program
from point_rend.utils.signals import SAME_REQUEST, SIGNALS

GRACE_SECONDS = 30  # for the other processes to end by themselves after one has failed
POLL_SECONDS = 1.0
SUSPENDED_SECONDS = 5.0  # the launcher itself was stopped if it did not run for so long
STOPPED_SECONDS = 10.0  # a process that a debugger stops for a moment is not named
ENDING_SECONDS = GRACE.total_seconds() + STUCK_SECONDS  # of the processes, after a signal


def supervise(
    context: ProcessContext, board: MutableSequence[float], *, silence_limit: float
) -> None:
    """Wait until all processes have ended.

    SIGTERM and the like are forwarded to them. They are killed after a second signal, and if they
    make no progress after the first.

    Args:
        context: The processes.
        board: Their progress.
        silence_limit: Seconds without progress after which a process is named; 0 for never.

    Raises:
        SystemExit, ProcessRaisedException: As :func:`point_rend.engine.launch.launch`.
    """
    processes = [process for process in context.processes if process is not None]
    first: tuple[int, float] | None = None
    killed = ""  # why

    def kill_all(why: str) -> None:
        nonlocal killed
        killed = why
        for process in processes:
            if process.is_alive():
                process.kill()

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal first
        now = time.monotonic()
        if first is not None and now - first[1] > SAME_REQUEST:
            kill_all(f"a second {signal.Signals(number).name}")
            return
        first = first or (number, now)
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)
                os.kill(process.pid, signal.SIGCONT)  # a stopped one could not end

    silence = Silence(processes, board, silence_limit)
    former = {number: signal.signal(number, forward) for number in SIGNALS}
    try:
        with guarded([process.pid for process in processes], ENDING_SECONDS):
            while not context.join(timeout=POLL_SECONDS, grace_period=GRACE_SECONDS):
                for line in silence.lines():
                    say(line)
                if first is not None and not killed and silence.since(first[1]):
                    kill_all(f"a lack of progress after {signal.Signals(first[0]).name}")
    except ProcessExitedException as error:
        if killed and first is not None:
            say(f"ended by {killed}: the processes were killed")
            raise SystemExit(signal_exit_code(first[0])) from error
        _exit_like(error)
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


def _exit_like(error: ProcessExitedException) -> NoReturn:
    """Exit with the code of a failed process; report one that was killed, which could not."""
    if error.exit_code >= 0:
        raise SystemExit(error.exit_code) from error
    say(f"error: {error.msg}; the other processes have been ended")
    raise SystemExit(signal_exit_code(-error.exit_code)) from error


def say(line: str) -> None:
    """Print a line of the launcher."""
    with contextlib.suppress(OSError):  # the terminal may be gone
        print(f"{program()}: {line}", file=sys.stderr, flush=True)


class Silence:
    """Finds processes that make no progress.

    Args:
        processes: The processes.
        board: Their progress.
        limit: Seconds without progress after which a process is named; 0 for never.
    """

    def __init__(
        self, processes: Sequence[BaseProcess], board: MutableSequence[float], limit: float
    ) -> None:
        self.processes = processes
        self.board = board
        self.limit = limit
        self._awake = self._looked = time.monotonic()
        self._stopped = [0.0] * len(processes)  # since when
        self._named = [0.0] * len(processes)  # the silence in seconds at which it is named again

    def lines(self) -> Iterator[str]:
        """Yield a line for each process that is to be named now."""
        now = time.monotonic()
        if now - self._looked > SUSPENDED_SECONDS:
            self._awake = now  # nobody made progress while all were suspended
        self._looked = now
        for rank, process in enumerate(self.processes if self.limit else ()):
            seen = progress.seen_on(self.board, rank)
            silent = now - max(seen.time, self._awake)
            state = state_of(process.pid)
            if state != "T":
                self._stopped[rank] = 0.0
            elif not self._stopped[rank]:
                self._stopped[rank] = now
            is_stopped = state == "T" and now - self._stopped[rank] > STOPPED_SECONDS
            usual = progress.patience(self.limit, seen.phase)
            if not process.is_alive() or (silent < usual and not is_stopped):
                self._named[rank] = 0.0
            elif silent >= self._named[rank]:
                self._named[rank] = max(2 * silent, self.limit)
                yield (
                    f"process {rank} (pid {process.pid}) has been silent for {silent:.0f} s while "
                    f"{progress.PHASES[seen.phase]}{STATES.get(state, '')}"
                )

    def since(self, moment: float) -> bool:
        """Return whether a process that lives has made no progress since a moment, for too long."""
        now = time.monotonic()
        for rank, process in enumerate(self.processes):
            seen = progress.seen_on(self.board, rank)
            idle = now - max(seen.time, moment, self._awake)
            if process.is_alive() and idle > progress.patience(ENDING_SECONDS, seen.phase):
                return True
        return False


STATES = {
    "T": ": it is stopped (SIGSTOP); `kill -CONT` continues it",
    "t": ": a debugger holds it",
    "D": ": it waits for a disk",
    "R": ": it computes",
}


def state_of(pid: int | None) -> str:
    """Return the state of a process as Linux has it, in one letter; elsewhere nothing."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text.rpartition(")")[2].split()[0]

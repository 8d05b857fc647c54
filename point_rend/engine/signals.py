"""Stopping a training on a signal without losing work, even if the training is stuck."""

import contextlib
import os
import signal
import time
from collections.abc import Iterator
from datetime import timedelta
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from detectron2.utils import comm

from point_rend.utils import progress, signals
from point_rend.utils.errors import TrainingStop, signal_exit_code
from point_rend.utils.signals import SIGNALS, watching

# Processes wait this long for the main one to save; torchrun kills the whole node after 30 s.
GRACE = timedelta(seconds=20)

# After a signal, a batch may take so many seconds to arrive.
READING_SECONDS = 10.0

# After a signal, a main thread that makes no progress for so long ends without saving.
STUCK_SECONDS = 60.0

# An exception that a signal raises may be lost, in a destructor for example: it is raised again.
AGAIN_SECONDS = 0.5


class StopSignals:
    """Handles the signals that ask to end; all processes of a run stop after the same iteration.

    The first signal is only recorded, and :meth:`check` raises. Inside :meth:`at_once` the signal
    itself raises, and inside :meth:`soon` a second one does, or the passage of time. Otherwise a
    second signal has its default effect. If the main thread hangs in a library, where Python
    handles no signal, a thread ends the process in its place.
    """

    def __init__(self) -> None:
        self._number = 0
        self._time = 0.0
        self._noted = 0.0  # time at which the last signal was handled
        self._delay: float | None = None  # from the signal to its effect, inside of a block
        # Not NCCL: a flag on a GPU would make the process wait for the GPU in each iteration.
        several = comm.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo") if several else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Handle signals inside a block of the main thread."""
        former = {number: signal.signal(number, self._note) for number in SIGNALS}
        former[signal.SIGALRM] = signal.signal(signal.SIGALRM, self._raise_again)
        try:
            with watching(self._is_stuck, lambda: self._noted):
                yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Check whether any process received a signal; all processes must call this.

        Raises:
            TrainingStop: In all processes, if one of them received a signal; in this one, if
                another does not respond.
        """
        number = self.largest(self._number)
        if number:
            raise _stop(number)

    def largest(self, value: int) -> int:
        """Return the largest of the values of all processes; all must call this.

        Raises:
            TrainingStop: In a process that received a signal, if another does not respond.
        """
        if self._group is None:
            return value
        flag = torch.tensor(value, dtype=torch.int32)
        with progress.during(progress.WAITING):
            work = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True)
            while not _is_done(work):
                if self._number and time.monotonic() - self._time > GRACE.total_seconds():
                    raise _stop(self._number, together=False)
        return int(flag)

    @contextlib.contextmanager
    def at_once(self, delay: float = 0.0) -> Iterator[None]:
        """Let a signal interrupt a block of this process at once.

        Args:
            delay: Seconds that the block may go on after the signal.

        Raises:
            TrainingStop: When a signal arrives, or at the start if one has arrived before.
        """
        self._delay = delay
        try:
            if self._number:
                self._interrupt()
            yield
        finally:
            self.settle()

    def soon(self) -> contextlib.AbstractContextManager[None]:
        """Let a second signal interrupt a block at once, and a first one if the block is stuck."""
        return self.at_once(READING_SECONDS)

    def settle(self) -> None:
        """Let no signal interrupt anything from here on."""
        self._delay = None
        signal.setitimer(signal.ITIMER_REAL, 0)

    def _interrupt(self) -> None:
        """Raise now or after the delay, and again as long as the block goes on."""
        signal.setitimer(signal.ITIMER_REAL, self._delay or AGAIN_SECONDS, AGAIN_SECONDS)
        if not self._delay:
            raise _stop(self._number)

    def wait_for_all(self) -> None:
        """Wait a limited time until all processes get here.

        A launcher ends the others as soon as one has ended, and the main one still has to save.
        """
        if self._group is not None:
            with contextlib.suppress(RuntimeError):  # a process has ended or does not respond
                dist.monitored_barrier(self._group, timeout=GRACE)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._noted = now = time.monotonic()
        if not self._number:
            self._number, self._time = number, now
            if comm.is_main_process():
                # Not print: the signal may have interrupted one. The terminal may be gone.
                signals.write_line("stopping after this iteration; a second signal ends it at once")
        elif now - self._time > signals.SAME_REQUEST:
            if not self._delay:
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            self._delay = 0.0
        if self._delay is not None:
            self._interrupt()

    def _is_stuck(self, first: float) -> bool:
        """Return whether the process makes no progress since the first signal, at a time."""
        idle = time.monotonic() - max(first, progress.latest())
        return idle > progress.patience(STUCK_SECONDS)

    def _raise_again(self, _number: int, _frame: FrameType | None) -> None:
        if self._delay is not None:
            self._delay = 0.0
            raise _stop(self._number)


def _stop(number: int, *, together: bool = True) -> TrainingStop:
    name = signal.Signals(number).name
    if not together:
        name += ", but other processes do not respond"
    return TrainingStop(f"stopped by {name}", exit_code=signal_exit_code(number), together=together)


def _is_done(work: Any) -> bool:
    """Wait at most a second for a collective operation: Python handles signals in between."""
    try:
        work.wait(timedelta(seconds=1))
    except RuntimeError:
        if work.is_completed():  # it failed
            raise
        return False
    return True

"""Stopping a training on SIGTERM and SIGINT without losing work."""

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

from point_rend.utils.errors import TrainingStop, signal_exit_code

SIGNALS = (signal.SIGTERM, signal.SIGINT)

# A terminal and a launcher may both forward a request: signals within so many seconds are one.
SAME_REQUEST = 1.0

# Processes wait this long for the main one to save; torchrun kills the whole node after 30 s.
GRACE = timedelta(seconds=20)


class StopSignals:
    """Handles SIGTERM and SIGINT; all processes of a run stop after the same iteration.

    The first signal is only recorded, and :meth:`check` raises. Inside :meth:`at_once` the signal
    itself raises. A second signal has its default effect.
    """

    def __init__(self) -> None:
        self._process = os.getpid()  # forks of this process ignore signals
        self._number = 0
        self._time = 0.0
        self._at_once = False
        # Not NCCL: a flag on a GPU would make the process wait for the GPU in each iteration.
        several = comm.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo") if several else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Record signals inside a block of the main thread."""
        former = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Check whether any process received a signal; all processes must call this.

        Raises:
            TrainingStop: In all processes, if one of them received a signal.
        """
        number = self._number
        if self._group is not None:
            flag = torch.tensor(number, dtype=torch.int32)
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group)
            number = int(flag)
        if number:
            raise _stop(number)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Let a signal interrupt a block of this process at once.

        Raises:
            TrainingStop: When a signal arrives, or at the start if one has arrived before.
        """
        self._at_once = True
        try:
            if self._number:
                raise _stop(self._number)
            yield
        finally:
            self._at_once = False

    def wait_for_all(self) -> None:
        """Wait a limited time until all processes get here.

        A launcher ends the others as soon as one has ended, and the main one still has to save.
        """
        if self._group is not None:
            with contextlib.suppress(RuntimeError):  # a process has ended or does not respond
                dist.monitored_barrier(self._group, timeout=GRACE)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        now = time.monotonic()
        if not self._number:
            self._number, self._time = number, now
            if comm.is_main_process():
                # Not print: the signal may have interrupted one. Ctrl-C ends a `tee` as well.
                with contextlib.suppress(BrokenPipeError):
                    os.write(2, b"stopping after this iteration; a second signal ends it at once\n")
        elif now - self._time > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._at_once:
            self._at_once = False
            raise _stop(self._number)


def _stop(number: int) -> TrainingStop:
    name = signal.Signals(number).name
    return TrainingStop(f"stopped by {name}", exit_code=signal_exit_code(number), together=True)

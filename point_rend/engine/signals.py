"""Ending a training on purpose: on a signal, or because it cannot go on, with nothing lost."""

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

from point_rend.utils.errors import TrainingStop

SIGNALS = (signal.SIGTERM, signal.SIGINT)


# A terminal and a launcher may both pass the same request on: within these seconds it is one.
SAME_REQUEST = 1.0


# Processes wait this long for the main one to save; torchrun kills the whole node after 30 s.
GRACE = timedelta(seconds=20)


class StopSignals:
    """Waits for SIGTERM and SIGINT; several processes end after the same iteration.

    The first signal is only noted; :meth:`check` raises. Within :meth:`at_once` it raises by
    itself. A second signal has the effect that it has by default.
    """

    def __init__(self) -> None:
        self._process = os.getpid()  # in a fork of this process signals mean nothing
        self._number = 0
        self._time = 0.0
        self._at_once = False
        # Not over NCCL: a flag on a GPU would make the process wait for the GPU in each iteration.
        several = comm.get_world_size() > 1
        self._group: Any = dist.new_group(backend="gloo") if several else None

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Note signals within a block of the main thread."""
        former = {number: signal.signal(number, self._note) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)

    def check(self) -> None:
        """Find out whether any process has got a signal; all of them have to call this.

        Raises:
            TrainingStop: In all processes, if one has.
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
        """Let a signal end a block in the middle, in this process.

        Raises:
            TrainingStop: When there is a signal, or has been one.
        """
        self._at_once = True
        try:
            if self._number:
                raise _stop(self._number)
            yield
        finally:
            self._at_once = False

    def wait_for_all(self) -> None:
        """Wait until all processes have come here, but not long.

        A launcher ends the others as soon as one has ended, and the main one has to save.
        """
        if self._group is not None:
            with contextlib.suppress(RuntimeError):  # one of them has ended, or does not listen
                dist.monitored_barrier(self._group, timeout=GRACE)

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return
        now = time.monotonic()
        if not self._number:
            self._number, self._time = number, now
            if comm.is_main_process():
                # Not by print, which may be what the signal interrupts. Ctrl-C ends tee, too.
                with contextlib.suppress(BrokenPipeError):
                    os.write(2, b"ending after this iteration; a second signal ends it at once\n")
        elif now - self._time > SAME_REQUEST:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        if self._at_once:
            self._at_once = False
            raise _stop(self._number)


def _stop(number: int) -> TrainingStop:
    name = signal.Signals(number).name
    return TrainingStop(f"stopped by {name}", exit_code=128 + number, together=True)

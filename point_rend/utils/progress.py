"""The progress of a process: its phase and the time of its last step, for those who watch it."""

import contextlib
import time
from collections.abc import Iterator, MutableSequence
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import nn

STARTING, READING, COMPUTING, WAITING, SAVING, EVALUATING = range(6)
PHASES = (
    "starting",
    "reading data",
    "computing",
    "waiting for the others",
    "saving a checkpoint",
    "evaluating",
)
# Phases of which a single step may take long, and how many times as long as one of a training.
PATIENT = {STARTING: 10, SAVING: 10, EVALUATING: 10}


class Progress(NamedTuple):
    """The last step of a process.

    Attributes:
        time: Its time, by the monotonic clock of the machine.
        phase: Index in ``PHASES``.
    """

    time: float
    phase: int


FIELDS = len(Progress._fields)  # numbers per process on a board

_board: MutableSequence[float] = [time.monotonic(), STARTING]
_place = 0


def show_on(board: MutableSequence[float], place: int) -> None:
    """Write the progress of this process onto a board that another process sees.

    Args:
        board: Shared memory of ``FIELDS`` numbers per process.
        place: Number of this process.
    """
    global _board, _place
    _board, _place = board, place
    note(STARTING)


def note(phase: int) -> None:
    """Note a step of this process: the phase that begins or goes on."""
    _board[_place * FIELDS : (_place + 1) * FIELDS] = [time.monotonic(), phase]


@contextlib.contextmanager
def during(phase: int) -> Iterator[None]:
    """Note a phase, and at its end the former one."""
    former = seen_on(_board, _place).phase
    note(phase)
    try:
        yield
    finally:
        note(former)


@contextlib.contextmanager
def noted_by(model: "nn.Module") -> Iterator[None]:
    """Note a step of an evaluation at each call of a model, whatever loader feeds it."""
    hook = model.register_forward_pre_hook(lambda *_: note(EVALUATING))
    try:
        yield
    finally:
        hook.remove()


def seen_on(board: MutableSequence[float], place: int) -> Progress:
    """Return the progress of a process from a board."""
    moment, phase = board[place * FIELDS : (place + 1) * FIELDS]
    return Progress(moment, int(phase))


def latest() -> float:
    """Return the time of the last step of this process."""
    return seen_on(_board, _place).time


def patience(seconds: float, phase: int | None = None) -> float:
    """Return the longest usual time of a step, given that of a training step.

    Args:
        seconds: That of a training step.
        phase: The phase; by default that of this process.
    """
    own = seen_on(_board, _place).phase if phase is None else phase
    return seconds * PATIENT.get(own, 1)

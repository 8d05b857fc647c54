"""Handling of SIGTERM and SIGINT in one process."""

import os
import signal
from collections.abc import Callable

import pytest

from point_rend.engine.signals import StopSignals
from point_rend.utils import signals as signals_module
from point_rend.utils.errors import TrainingStop
from point_rend.utils.signals import SIGNALS


def raise_here(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_is_recorded_and_raised_by_the_check(number: int) -> None:
    signals = StopSignals()
    with signals.listening():
        signals.check()
        raise_here(number)
        with pytest.raises(TrainingStop, match=signal.Signals(number).name) as stop:
            signals.check()
    assert stop.value.exit_code == 128 + number
    assert stop.value.saves
    assert stop.value.together


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_interrupts_an_interruptible_block(number: int) -> None:
    signals = StopSignals()

    def end() -> None:
        with signals.at_once():
            raise_here(number)
            pytest.fail("the block goes on")

    with signals.listening(), pytest.raises(TrainingStop, match=signal.Signals(number).name):
        end()


def test_an_interruptible_block_does_not_start_after_a_signal() -> None:
    signals = StopSignals()
    with signals.listening():
        raise_here(signal.SIGTERM)
        with pytest.raises(TrainingStop), signals.at_once():
            pytest.fail("the block has begun")


def test_the_former_handlers_are_restored() -> None:
    former = [signal.getsignal(number) for number in SIGNALS]
    with StopSignals().listening():
        assert [signal.getsignal(number) for number in SIGNALS] != former
    assert [signal.getsignal(number) for number in SIGNALS] == former


def exit_code_of(work: Callable[[], None]) -> int:
    """Call a function in a fork of this process; return its exit code."""
    pid = os.fork()
    if not pid:
        try:
            work()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def twice(number: int) -> None:
    with StopSignals().listening():
        raise_here(number)
        raise_here(number)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_second_signal_ends_the_process_at_once(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals_module, "SAME_REQUEST", -1.0)
    assert exit_code_of(lambda: twice(number)) == -number


@pytest.mark.parametrize("number", SIGNALS)
def test_two_signals_in_quick_succession_are_one_request(
    number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signals_module, "SAME_REQUEST", float("inf"))
    assert exit_code_of(lambda: twice(number)) == 0

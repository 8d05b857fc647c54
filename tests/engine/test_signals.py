"""Handling of SIGTERM and SIGINT in one process."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable

import pytest

from point_rend.engine import signals as engine_signals
from point_rend.engine.signals import StopSignals
from point_rend.utils import signals as signals_module
from point_rend.utils.errors import TrainingStop
from point_rend.utils.signals import SIGNALS, signals_wait


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


class Swallowing:
    """An object whose destructor is interrupted: Python ignores the exception."""

    def __del__(self) -> None:
        raise_here(signal.SIGTERM)


def test_an_interruption_that_is_lost_is_repeated(monkeypatch: pytest.MonkeyPatch) -> None:
    def end() -> None:
        with signals.at_once():
            swallowing = Swallowing()
            del swallowing
            while True:
                time.sleep(1)

    signals, lost = StopSignals(), []
    monkeypatch.setattr(engine_signals, "AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(sys, "unraisablehook", lambda ignored: lost.append(ignored.exc_type))
    with signals.listening(), pytest.raises(TrainingStop, match="SIGTERM"):
        end()
    assert lost[0] == TrainingStop


def test_a_patient_block_goes_on_for_a_while_after_a_signal_and_ends_at_a_second(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    signals, events = StopSignals(), []

    def end() -> None:
        with signals.soon():
            raise_here(signal.SIGTERM)
            events.append("first")
            monkeypatch.setattr(signals_module, "SAME_REQUEST", -1.0)
            raise_here(signal.SIGTERM)
            pytest.fail("the block goes on")

    with signals.listening(), pytest.raises(TrainingStop, match="SIGTERM"):
        end()
    assert events == ["first"]


def test_a_patient_block_that_is_stuck_ends_after_one_signal(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(engine_signals, "READING_SECONDS", 0.01)
    signals = StopSignals()
    reader, writer = os.pipe()

    def end() -> None:
        with signals.soon():
            raise_here(signal.SIGTERM)
            os.read(reader, 1)

    with signals.listening(), pytest.raises(TrainingStop, match="SIGTERM"):
        end()
    os.close(reader)
    os.close(writer)


def test_signals_wait_for_the_end_of_a_block_even_if_another_thread_takes_them() -> None:
    signals, events = StopSignals(), []

    def end() -> None:
        with signals.at_once(), signals_wait():
            raise_here(signal.SIGTERM)  # the thread that watches does not block it
            events.append("goes on")

    with signals.listening(), pytest.raises(TrainingStop, match="SIGTERM"):
        end()
    assert events == ["goes on"]


def test_a_hangup_that_nohup_ignores_stays_ignored() -> None:
    program = "from point_rend.utils.signals import SIGNALS; print(*(x.name for x in SIGNALS))"
    listed = []
    for start in ("", "trap '' HUP; "):
        shell = ["sh", "-c", f'{start}exec "$0" -c "$1"', sys.executable, program]
        listed.append(subprocess.run(shell, capture_output=True, text=True, check=True).stdout)
    assert listed[0].split() == ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR1"]
    assert listed[1].split() == ["SIGTERM", "SIGINT", "SIGUSR1"]


def test_forks_of_a_process_that_listens_leave_signals_to_it_and_end_with_it() -> None:
    def parent() -> None:
        with StopSignals().listening():
            pid = os.fork()
            if not pid:
                for number in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR1):
                    raise_here(number)
                os.write(writer, b"spared")
                signal.pause()
            assert os.read(reader, 100) == b"spared"
            os._exit(5)

    reader, writer = os.pipe()
    assert exit_code_of(parent) == 5
    os.close(writer)
    assert os.read(reader, 100) == b""  # the fork, which held the other side, has ended
    os.close(reader)

"""Processes that are stuck, silent or orphaned, and the launcher that supervises them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from multiprocessing import RawArray
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing.spawn import start_processes

from point_rend.engine import supervision
from point_rend.engine.supervision import Silence, state_of, supervise
from point_rend.utils import progress
from point_rend.utils.signals import signals_end_the_command, signals_wait
from tests.engine.killing import PATIENCE, SERVER

LIMIT = 100.0


def wait_until(happened: Callable[[], Any]) -> None:
    """Wait for a condition."""
    deadline = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Return whether a process exists and is no zombie."""
    return state_of(pid) not in ("", "Z", "X")


class Launched:
    """A launcher, a fork that supervises two processes; each process writes its id to a file."""

    def __init__(self, folder: Path, stuck: bool, **settings: float) -> None:
        self.folder = folder
        words = (folder, stuck, settings)
        self.launcher = SERVER.Process(target=launcher_of_two, args=words)
        self.launcher.start()
        files = [folder / "0", folder / "1"]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        self.pids = [int(file.read_text()) for file in files]

    def output(self) -> str:
        return (self.folder / "log").read_text()

    def end(self) -> int:
        """Wait until the launcher and its processes have ended; return its exit code."""
        self.launcher.join(PATIENCE)
        wait_until(lambda: not any(map(is_alive, self.pids)))
        assert self.launcher.exitcode is not None
        return self.launcher.exitcode


def launcher_of_two(folder: Path, stuck: bool, settings: dict[str, float]) -> None:
    """Supervise two processes: the body of a launcher."""
    descriptor = os.open(folder / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 2)
    sys.stderr = os.fdopen(2, "w")
    sys.argv = ["pointrend", "train"]
    for name, value in settings.items():
        setattr(supervision, name, value)
    board = RawArray("d", 2 * progress.FIELDS)
    with signals_wait():
        context = start_processes(
            rank, (folder, board, stuck), 2, join=False, start_method="fork", daemon=False
        )
    supervise(context, board, silence_limit=LIMIT)


def rank(number: int, folder: Path, board: Any, stuck: bool) -> None:
    """Make progress until a signal comes: the body of a process; the second one may be stuck."""
    with signals_end_the_command():
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGTERM} if number and stuck else {})
        progress.show_on(board, number)
        progress.note(progress.COMPUTING)
        (folder / f"{number}").write_text(str(os.getpid()))
        while True:
            if not (number and stuck):
                progress.note(progress.COMPUTING)
            time.sleep(0.01)


def test_a_stopped_process_is_named_and_a_signal_to_the_launcher_ends_all(tmp_path: Path) -> None:
    launched = Launched(tmp_path, stuck=False, STOPPED_SECONDS=0.0, POLL_SECONDS=0.05)
    os.kill(launched.pids[1], signal.SIGSTOP)
    wait_until(lambda: "stopped (SIGSTOP)" in launched.output())
    assert f"pointrend train: process 1 (pid {launched.pids[1]}) has been" in launched.output()
    assert "process 0" not in launched.output()
    os.kill(launched.launcher.pid, signal.SIGTERM)
    assert launched.end() == 128 + signal.SIGTERM
    assert "Traceback" not in launched.output()


def test_a_second_signal_to_the_launcher_kills_processes_that_ignore_the_first(
    tmp_path: Path,
) -> None:
    launched = Launched(tmp_path, stuck=True, SAME_REQUEST=-1.0, POLL_SECONDS=0.05)
    os.kill(launched.launcher.pid, signal.SIGTERM)
    wait_until(lambda: not is_alive(launched.pids[0]))
    assert is_alive(launched.pids[1])
    os.kill(launched.launcher.pid, signal.SIGTERM)
    assert launched.end() == 128 + signal.SIGTERM
    assert "ended by a second SIGTERM: the processes were killed" in launched.output()


def test_after_a_signal_processes_without_progress_are_killed(tmp_path: Path) -> None:
    launched = Launched(
        tmp_path, stuck=True, ENDING_SECONDS=0.5, POLL_SECONDS=0.05, GRACE_SECONDS=0.2
    )
    os.kill(launched.launcher.pid, signal.SIGHUP)
    assert launched.end() == 128 + signal.SIGHUP


def test_no_process_outlives_a_launcher_that_is_killed_even_if_all_are_stopped(
    tmp_path: Path,
) -> None:
    settings = {"ENDING_SECONDS": 0.2, "STOPPED_SECONDS": 0.0, "POLL_SECONDS": 0.05}
    launched = Launched(tmp_path, stuck=True, **settings)
    for pid in launched.pids:
        os.kill(pid, signal.SIGSTOP)
    wait_until(lambda: launched.output().count("stopped (SIGSTOP)") == 2)
    launched.launcher.kill()
    assert launched.end() == -signal.SIGKILL


class Child:
    """A process as a launcher sees it."""

    pid = os.getpid()

    def is_alive(self) -> bool:
        return True


def silence(phase: int, seconds: float) -> list[str]:
    """Return the lines on a process whose last step, in a phase, was some seconds ago."""
    board = RawArray("d", progress.FIELDS)
    board[:] = [time.monotonic() - seconds, phase]
    watch = Silence([Child()], board, LIMIT)  # type: ignore[list-item]
    watch._awake = 0.0
    return [*watch.lines()]


@pytest.mark.parametrize(
    ("phase", "named_after"),
    [(progress.READING, LIMIT), (progress.COMPUTING, LIMIT), (progress.EVALUATING, 10 * LIMIT)],
)
def test_a_process_is_named_with_its_phase_only_after_more_than_a_usual_time(
    phase: int, named_after: float
) -> None:
    assert silence(phase, named_after - 5) == []
    (line,) = silence(phase, named_after + 5)
    assert line.startswith(f"process 0 (pid {os.getpid()}) has been silent for")
    assert f"while {progress.PHASES[phase]}" in line


def test_a_silent_process_is_named_again_only_after_twice_the_time() -> None:
    board = RawArray("d", progress.FIELDS)
    board[:] = [time.monotonic() - LIMIT - 5, progress.READING]
    watch = Silence([Child()], board, LIMIT)  # type: ignore[list-item]
    watch._awake = 0.0
    assert [len([*watch.lines()]) for _ in range(3)] == [1, 0, 0]
    board[0] -= LIMIT + 10
    assert len([*watch.lines()]) == 1


def test_nobody_is_silent_right_after_the_launcher_itself_was_suspended() -> None:
    board = RawArray("d", progress.FIELDS)
    board[:] = [time.monotonic() - LIMIT - 5, progress.READING]
    watch = Silence([Child()], board, LIMIT)  # type: ignore[list-item]
    watch._looked -= supervision.SUSPENDED_SECONDS + 1
    assert not [*watch.lines()]


# A main thread that handles no signal

ENDLESS_CALL = """
import ctypes, sys
from point_rend.utils import signals
signals.HANDLED_SECONDS, signals.SAME_REQUEST, signals.POLL_SECONDS = {handled}, 0.1, 0.05
sys.argv = ["pointrend", "score"]
with signals.signals_end_the_command():
    lock, mutex = ctypes.CDLL(None).pthread_mutex_lock, ctypes.create_string_buffer(64)
    lock(mutex)
    print("ready", flush=True)
    lock(mutex)  # waits for itself, and goes on after signals
"""


@pytest.mark.parametrize(
    ("handled", "reason"), [(0.2, "a lack of progress after"), (1000.0, "a second")]
)
def test_a_call_that_never_returns_does_not_block_signals(handled: float, reason: str) -> None:
    words = [sys.executable, "-c", ENDLESS_CALL.format(handled=handled)]
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        wait_until(lambda: state_of(process.pid) == "S")
        process.send_signal(signal.SIGTERM)
        if handled > 1:
            while process.poll() is None:
                time.sleep(0.2)
                process.send_signal(signal.SIGTERM)
        _, errors = process.communicate(timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGTERM
    assert errors == f"pointrend score: ended by {reason} SIGTERM\n"

"""The harness itself notices a traceback, a signal, a hang and too much memory."""

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.robustness.harness import Row, run_command, run_row, table

ROWS = [Row("no config", lambda _: ["train"], "--config-file is missing")]


@table(ROWS)
def test_a_row_ends_in_one_line(row: Row, tmp_path: Path) -> None:
    run_row(row, tmp_path)


def fail() -> None:
    raise RuntimeError("a bug")


def crash() -> None:
    os.kill(os.getpid(), signal.SIGSEGV)


def spin() -> None:
    while True:
        pass


def allocate() -> None:
    bytearray(3 << 30)


@pytest.mark.parametrize(
    ("fault", "expected"),
    [(fail, "RuntimeError: a bug"), (crash, "exit code -11"), (allocate, "MemoryError")],
)
def test_a_traceback_a_signal_and_too_much_memory_fail_a_row(
    fault: Callable[[], None], expected: str, tmp_path: Path
) -> None:
    row = Row("faulty", lambda _: ["train"], "--config-file", first=fault)
    with pytest.raises(AssertionError, match=expected):
        run_row(row, tmp_path)


def test_a_busy_loop_is_killed(tmp_path: Path) -> None:
    assert run_command(["train"], tmp_path, seconds=0, first=spin).exit_code == -signal.SIGXCPU


def test_another_line_or_exit_code_fails_a_row(tmp_path: Path) -> None:
    for row in (ROWS[0]._replace(line="absent"), ROWS[0]._replace(exit_code=0)):
        with pytest.raises(AssertionError):
            run_row(row, tmp_path)

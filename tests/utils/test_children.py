"""Commands as children: signals reach them, and they end with their parent."""

import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from point_rend.utils.children import run_child

# Writes the number of each signal into a file, and ends by SIGTERM.
CHILD = """
import os, pathlib, signal, sys, time
def note(number, _frame):
    pathlib.Path(sys.argv[1], signal.Signals(number).name).touch()
    if number == signal.SIGTERM:
        raise SystemExit(143)
for name in ("SIGTERM", "SIGUSR1"):
    signal.signal(getattr(signal, name), note)
print(os.getpid(), flush=True)
time.sleep(300)
"""
PARENT = "import sys; from point_rend.utils.children import run_child; run_child(sys.argv[1:])"


def started(folder: Path) -> tuple["subprocess.Popen[bytes]", int]:
    """Start a process that runs a child; return it and the number of the child."""
    words = [sys.executable, "-c", PARENT, sys.executable, "-c", CHILD, str(folder)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    return parent, int(parent.stdout.readline())


def wait_for_end(parent: "subprocess.Popen[bytes]") -> None:
    """Wait until all processes that write to the output of a parent have ended."""
    parent.communicate(timeout=60)


def test_the_signals_of_a_parent_reach_its_child(tmp_path: Path) -> None:
    parent, _ = started(tmp_path)
    parent.send_signal(signal.SIGUSR1)
    while not (tmp_path / "SIGUSR1").exists():
        assert parent.poll() is None
    parent.terminate()
    wait_for_end(parent)
    assert (tmp_path / "SIGTERM").exists()


def test_the_child_of_a_parent_that_is_killed_is_asked_to_end(tmp_path: Path) -> None:
    parent, _ = started(tmp_path)
    parent.kill()
    wait_for_end(parent)
    assert (tmp_path / "SIGTERM").exists()


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["raise SystemExit(7)"], 7),
        (["import os", "os.kill(os.getpid(), 9)"], 137),
        (["import os", "raise SystemExit(os.environ['NAME'] != 'value')"], 0),
    ],
)
def test_the_exit_code_is_that_of_a_shell(lines: Sequence[str], code: int) -> None:
    environment = os.environ | {"NAME": "value"}
    assert run_child([sys.executable, "-c", "\n".join(lines)], environment) == code


def test_a_signal_that_the_child_does_not_heed_ends_the_parent(tmp_path: Path) -> None:
    child = CHILD.replace("raise SystemExit(143)", "raise SystemExit(0)")
    words = [sys.executable, "-c", PARENT, sys.executable, "-c", child, str(tmp_path)]
    parent = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert parent.stdout is not None
    parent.stdout.readline()
    parent.terminate()
    wait_for_end(parent)
    assert parent.returncode == -signal.SIGTERM

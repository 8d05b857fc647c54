"""The busy processes of a benchmark: they compute, and never outlive it."""

import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from point_rend.experiments.benchmark.load import busy_processes
from tests.tiny_datasets import REPOSITORY

PARENT = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job ignores it
from point_rend.experiments.benchmark.load import busy_processes
with busy_processes(2) as processes:
    print(*(process.pid for process in processes), flush=True)
    sys.stdin.read()
"""


def cpu_seconds(pid: int) -> float:
    """The processor time that a process has taken, as Linux reports it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def runs(pid: int) -> bool:
    """Whether a process exists and has not ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_for(condition, seconds: float = 60) -> None:
    """Wait until a condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_each_process_takes_processor_time_and_ends_with_the_context() -> None:
    before = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    with busy_processes(2) as processes:
        assert len(processes) == 2
        start = [cpu_seconds(process.pid) for process in processes]
        for process, seconds in zip(processes, start, strict=True):
            wait_for(lambda pid=process.pid, end=seconds + 0.1: cpu_seconds(pid) >= end)
    assert [process.poll() for process in processes] == [-signal.SIGKILL] * 2
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - before >= 0.2


def test_no_process_is_started_without_a_load() -> None:
    with busy_processes(0) as processes:
        assert processes == []


def test_the_processes_end_when_the_measurement_fails() -> None:
    with pytest.raises(ZeroDivisionError), busy_processes(1) as processes:
        _ = 1 / 0
    assert processes[0].poll() is not None


def test_a_process_that_ends_by_itself_is_an_error() -> None:
    load = busy_processes(1)
    (process,) = load.__enter__()
    process.kill()
    process.wait()
    with pytest.raises(RuntimeError, match="a busy process ended with code -9 during"):
        load.__exit__(None, None, None)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_the_processes_end_with_their_parent_however_that_ends(number: signal.Signals) -> None:
    """As at a terminal: Ctrl-C reaches all processes of the group, a kill only the parent."""
    with subprocess.Popen(
        [sys.executable, "-c", PARENT],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as parent:
        assert parent.stdout is not None
        pids = [int(word) for word in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(map(runs, pids))
        if number == signal.SIGINT:
            os.killpg(parent.pid, number)
        else:
            parent.send_signal(number)
        parent.wait(timeout=60)
        wait_for(lambda: not any(map(runs, pids)))
        assert parent.stderr is not None
        assert parent.stderr.read().count(b"Traceback") == (number == signal.SIGINT)

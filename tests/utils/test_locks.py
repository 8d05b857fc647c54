"""A folder is locked by one process at a time, whose end frees it, however it comes."""

import errno
import fcntl
import json
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from point_rend.utils import locks
from point_rend.utils.files import NotSavedError
from point_rend.utils.locks import keep_folder_locked, lock_folder, unlock_folders

FORK = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _unlocked() -> Iterator[None]:
    yield
    unlock_folders()


def hold(folder: Path, connection: Connection, *, writes_only: bool) -> None:
    """Lock a folder, answer, and wait to be killed or asked to end: the body of a process."""
    if writes_only:
        keep_folder_locked(folder)
    else:
        lock_folder(folder)
    connection.send(os.getpid())
    connection.recv()
    unlock_folders()


class Other:
    """Another process that holds the lock of a folder."""

    def __init__(self, folder: Path, *, writes_only: bool = False) -> None:
        self.connection, there = FORK.Pipe()
        self.process = FORK.Process(
            target=hold, args=(folder, there), kwargs={"writes_only": writes_only}
        )
        self.process.start()
        self.number = self.connection.recv()

    def end(self) -> None:
        self.connection.send("end")
        self.process.join()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def test_a_second_process_is_refused_with_the_first_and_then_accepted(tmp_path: Path):
    other = Other(tmp_path)
    expected = f"{str(tmp_path)!r} is in use by another run: process {other.number} on "
    with pytest.raises(ValueError, match="is in use") as error:
        lock_folder(tmp_path)
    assert str(error.value).startswith(expected + socket.gethostname())
    other.end()
    assert not list(tmp_path.iterdir())
    lock_folder(tmp_path)
    lock_folder(tmp_path)  # the same process once more
    unlock_folders()
    assert not list(tmp_path.iterdir())


def test_the_lock_of_a_killed_process_is_free_and_its_forks_do_not_hold_it(tmp_path: Path):
    other = Other(tmp_path)
    other.kill()
    assert (tmp_path / locks.NAME).exists()
    lock_folder(tmp_path)
    reader, writer = os.pipe()
    if not (worker := os.fork()):
        os.read(reader, 1)
        os._exit(0)
    held = json.loads((tmp_path / locks.NAME).read_text())
    assert held["process"] == os.getpid()
    unlock_folders()
    taken = Other(tmp_path)
    taken.end()
    os.write(writer, b"x")
    os.waitpid(worker, 0)


def test_a_fork_frees_nothing_of_its_parent(tmp_path: Path):
    lock_folder(tmp_path)
    if not (worker := os.fork()):
        unlock_folders()
        os._exit(0)
    os.waitpid(worker, 0)
    assert (tmp_path / locks.NAME).exists()
    other = FORK.Process(target=lock_folder, args=(tmp_path,))
    other.start()
    other.join()
    assert other.exitcode == 1


def test_a_run_is_alive_as_long_as_the_process_that_writes(tmp_path: Path):
    starter = Other(tmp_path)
    writer = Other(tmp_path, writes_only=True)
    starter.kill()
    with pytest.raises(ValueError, match="is in use"):
        lock_folder(tmp_path)
    writer.end()
    lock_folder(tmp_path)


def planted(folder: Path, **fields: Any) -> Path:
    """Write the file of a holder that has left it."""
    here = locks._this_process()._asdict()
    file = folder / locks.NAME
    file.write_text(json.dumps(here | {"process": ended_process()} | fields))
    return file


def ended_process() -> int:
    """Return the number of a process that has ended."""
    if not (number := os.fork()):
        os._exit(0)
    os.waitpid(number, 0)
    return number


ELSEWHERE = {"host": "elsewhere", "boot": "another"}


@pytest.mark.parametrize("locking", [True, False], ids=["locks", "no locks"])
def test_a_holder_on_another_machine_is_respected_until_its_file_is_removed(
    locking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if not locking:
        monkeypatch.setattr(fcntl, "lockf", unsupported)
    file = planted(tmp_path, **ELSEWHERE)
    with pytest.raises(ValueError, match=rf"on elsewhere, .*; if it has ended, remove {file}"):
        lock_folder(tmp_path)
    file.unlink()
    lock_folder(tmp_path)


@pytest.mark.parametrize(
    "fields",
    [{}, {"boot": "before it was restarted"}, ELSEWHERE | {"job": "7"}],
    ids=["a process that has ended", "before a restart", "a job that was queued again"],
)
@pytest.mark.parametrize("locking", [True, False], ids=["locks", "no locks"])
def test_a_holder_that_must_have_ended_is_replaced(
    fields: dict[str, str], locking: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    if not locking:
        monkeypatch.setattr(fcntl, "lockf", unsupported)
    planted(tmp_path, **fields)
    lock_folder(tmp_path)
    assert json.loads((tmp_path / locks.NAME).read_text())["process"] == os.getpid()


def test_without_locks_a_living_process_is_respected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(fcntl, "lockf", unsupported)
    planted(tmp_path, process=os.getppid())
    with pytest.raises(ValueError, match=f"process {os.getppid()} on"):
        lock_folder(tmp_path)


INFINITE = '{"host": "", "boot": "", "process": Infinity, "job": "", "since": ""}'


@pytest.mark.parametrize("content", ["", "{", "[]", '{"host": 1}', "\0" * 9, "[" * 4000, INFINITE])
def test_a_file_that_was_cut_off_names_nobody(content: str, tmp_path: Path):
    (tmp_path / locks.NAME).write_text(content)
    lock_folder(tmp_path)


def test_of_many_that_start_together_one_at_a_time_holds_the_lock(tmp_path: Path):
    """Each writes a file while it holds the lock, and fails if another one is there."""
    processes = [FORK.Process(target=take_turns, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0] * 4
    assert not (tmp_path / locks.NAME).exists()


def take_turns(folder: Path) -> None:
    turns = 0
    while turns < 25:
        try:
            lock_folder(folder)
        except ValueError:
            time.sleep(0.0005)
            continue
        descriptor = os.open(folder / "one", os.O_CREAT | os.O_EXCL)
        os.close(descriptor)
        os.unlink(folder / "one")
        unlock_folders()
        turns += 1


def unsupported(*_: object) -> None:
    raise OSError(errno.ENOLCK, "No locks available")


def test_a_full_disk_is_named_and_leaves_no_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", fail)
    with pytest.raises(NotSavedError, match=f"{locks.NAME} could not be saved"):
        lock_folder(tmp_path)
    assert not list(tmp_path.iterdir())
    monkeypatch.undo()
    Other(tmp_path).end()


def test_the_end_of_a_process_by_a_signal_frees_the_lock(tmp_path: Path):
    other = Other(tmp_path)
    os.kill(other.number, signal.SIGTERM)
    other.process.join()
    lock_folder(tmp_path)

"""A lock on a folder, which one run holds at a time and which ends with it, however it ends.

The lock is a file with the host, the process and the start of its holder. The operating system
locks the file for the holder, and frees it when the holder ends, even if it is killed. On file
systems without such locks the contents of the file decide.

Locks of fcntl belong to a process: its forks, such as the workers of a data loader, do not share
them, and another lock of the same process succeeds.
"""

import atexit
import contextlib
import errno
import fcntl
import json
import os
import socket
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from point_rend.utils.files import NotSavedError

NAME = "run.lock"
# A byte of the file for each process that keeps the lock: the one that starts a run, and the one
# that writes its files. They differ if a run has several processes.
_STARTER, _WRITER = 0, 1
UNSUPPORTED = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL}


class Holder(NamedTuple):
    """A process that holds a lock.

    Attributes:
        host: Name of its machine.
        boot: Identifier of the start of that machine; empty if it has none.
        process: Number of the process.
        job: Number of its SLURM job, if any; a job that is queued again keeps it.
        since: Time of its start.
    """

    host: str
    boot: str
    process: int
    job: str
    since: str


_descriptors: dict[tuple[int, str], int] = {}  # of this process and its forks, by process and path
_own: set[tuple[int, str]] = set()  # those of lock_folder


def lock_folder(folder: str | Path) -> None:
    """Lock a folder until :func:`unlock_folders`, or until this process ends.

    Raises:
        ValueError: If another process holds the lock, or may hold it on another machine.
        OSError: If the operating system refuses to open or to write the file.
    """
    path = os.path.join(os.path.realpath(folder), NAME)
    key = os.getpid(), path
    if key in _own:
        return
    here = _this_process()
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK, 0o666)
        try:
            is_locked = _lock(descriptor, _STARTER, 2)
            holder = _read(descriptor)
            if is_locked is False:
                raise ValueError(_in_use(folder, holder, "wait for its end, or choose another one"))
            if not _is_at(descriptor, path):  # its holder has just removed it
                os.close(descriptor)
                continue
            if holder is not None and not _has_ended(holder, here, is_locked=bool(is_locked)):
                raise ValueError(_in_use(folder, holder, f"if it has ended, remove {path}"))
            if is_locked:
                fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _WRITER)
            _write(descriptor, path, here)
        except BaseException:
            os.close(descriptor)
            raise
        break
    _descriptors[key] = descriptor
    _own.add(key)


def keep_folder_locked(folder: str | Path) -> None:
    """Keep the lock of a run also while this process lives, which writes the files of the run."""
    path = os.path.join(os.path.realpath(folder), NAME)
    key = os.getpid(), path
    with contextlib.suppress(OSError):
        if key not in _descriptors:
            _descriptors[key] = os.open(path, os.O_RDWR)
        _lock(_descriptors[key], _WRITER, 1)


@atexit.register
def unlock_folders() -> None:
    """Free the locks that this process holds, and remove the files of those that it took first."""
    for key in [key for key in _descriptors if key[0] == os.getpid()]:
        descriptor = _descriptors.pop(key)
        with contextlib.suppress(OSError):
            if key in _own and _is_at(descriptor, key[1]):
                os.unlink(key[1])
        _own.discard(key)
        os.close(descriptor)


def _this_process() -> Holder:
    boot = Path("/proc/sys/kernel/random/boot_id")  # of Linux
    since = datetime.now(UTC).astimezone().isoformat(" ", "seconds")
    return Holder(
        host=socket.gethostname(),
        boot=boot.read_text().strip() if boot.is_file() else "",
        process=os.getpid(),
        job=os.environ.get("SLURM_JOB_ID", ""),
        since=since,
    )


def _lock(descriptor: int, start: int, length: int) -> bool | None:
    """Lock bytes of a file; False if another process holds one, None if locks are unsupported."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, length, start)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES):
            return False
        if error.errno in UNSUPPORTED:
            return None
        raise
    return True


def _write(descriptor: int, path: str, holder: Holder) -> None:
    """Write the holder into its file.

    Raises:
        NotSavedError: If the operating system refuses; the file is then removed.
    """
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(holder._asdict()).encode(), 0)
    except OSError as error:
        os.unlink(path)
        raise NotSavedError(Path(path), error) from error


def _read(descriptor: int) -> Holder | None:
    """Read the holder from a file; None if it has none, as one that was cut off."""
    try:
        content = json.loads(os.pread(descriptor, 4096, 0))
        return Holder(
            **{name: kind(content[name]) for name, kind in Holder.__annotations__.items()}
        )
    except (ValueError, LookupError, TypeError, RecursionError, OverflowError):
        return None


def _is_at(descriptor: int, path: str) -> bool:
    """Return whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _has_ended(holder: Holder, here: Holder, *, is_locked: bool) -> bool:
    """Return whether the holder that a file names has ended without removing it.

    Args:
        holder: The holder.
        here: This process.
        is_locked: Whether this process has locked the file; on one machine that is proof.
    """
    if holder.boot == here.boot and (here.boot or holder.host == here.host):
        return is_locked or not _is_alive(holder.process)
    was_restarted = holder.host == here.host
    was_queued_again = holder.job != "" and holder.job == here.job
    return was_restarted or was_queued_again


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


def _in_use(folder: str | Path, holder: Holder | None, advice: str) -> str:
    who = f": process {holder.process} on {holder.host}, since {holder.since}" if holder else ""
    return f"{str(folder)!r} is in use by another run{who}; {advice}"

"""Claims of blocks: which process of a run works on which, by locks of one file in its folder.

A process locks one byte of the file for the block it works on. The operating system frees it when
the process ends, however it ends, so that another one takes the block. The locks hold across the
machines that share a folder, such as over NFS. Where they do not, the worst is double work: two
processes write equal shards.
"""

import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from point_rend.utils.files import NotSavedError
from point_rend.utils.locks import UNSUPPORTED

LOCK_NAME = "shards.lock"
# Bytes of the file: one for the preparation of the folder, one that all processes of its runs hold,
# and one for each block.
_PREPARATION, _RUNNING, _FIRST_BLOCK = 0, 1, 2


class Claims:
    """The locks of this process in a folder of shards, which is created.

    Args:
        folder: The folder.

    Attributes:
        are_exclusive: Whether the file system has locks.

    Raises:
        NotSavedError: If the operating system refuses.
    """

    def __init__(self, folder: str | Path) -> None:
        path = Path(folder, LOCK_NAME)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise NotSavedError(path, error) from error
        self.are_exclusive = True

    @contextmanager
    def preparing(self) -> Iterator[bool]:
        """Let one process at a time prepare the folder.

        Yields:
            Whether no other process works on it.
        """
        with suppress(OSError):  # without locks, all write the same
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX, 1, _PREPARATION)
        try:
            yield self._lock(_RUNNING)
        finally:
            with suppress(OSError):
                fcntl.lockf(self._descriptor, fcntl.LOCK_SH, 1, _RUNNING)
                fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _PREPARATION)

    def take(self, number: int) -> bool:
        """Claim a block; return whether no other process works on it."""
        return self._lock(_FIRST_BLOCK + number)

    def release(self, number: int) -> None:
        """Give a block back, finished or not."""
        with suppress(OSError):
            fcntl.lockf(self._descriptor, fcntl.LOCK_UN, 1, _FIRST_BLOCK + number)

    def close(self) -> None:
        """Give everything back."""
        os.close(self._descriptor)

    def _lock(self, byte: int) -> bool:
        """Lock a byte; True as well where locks are not supported."""
        try:
            fcntl.lockf(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, byte)
        except OSError as error:
            if error.errno in (errno.EAGAIN, errno.EACCES):
                return False
            if error.errno not in UNSUPPORTED:
                raise
            self.are_exclusive = False
        return True

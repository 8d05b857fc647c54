"""Writing of files that are complete or absent."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO


class NotSavedError(OSError):
    """A file could not be saved; the former ones are as they were."""

    def __str__(self) -> str:
        return str(self.strerror)


# --- files that are whole ---------------------------------------------------------------------
_TEMPORARY = ".{}.tmp"  # name of a file that is not complete


@contextmanager
def _written_whole(path: str) -> Iterator[BinaryIO]:
    """Open a file to write and read that appears under ``path`` when it is complete and safe."""
    folder, name = os.path.split(path)
    temporary = os.path.join(folder, _TEMPORARY.format(name))
    try:
        with open(temporary, "w+b") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        _write_through(folder)
    except BaseException as error:
        with suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError):
            raise NotSavedError(
                error.errno,
                f"{path} could not be saved ({error.strerror or error}): make room or let the "
                "folder be written to; the checkpoints before it are as they were",
            ) from error
        raise


def _write_through(folder: str) -> None:
    """Make the names in a folder survive a crash of the machine, where its file system can."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # of file systems that cannot
            raise
    finally:
        os.close(descriptor)


def check_output(path: str | Path, *, folder: bool = False) -> None:
    """Make sure, before the work for it, that what --output names can be written; nothing is left.

    Args:
        path: Of a file, whose folder need not be there.
        folder: Whether it is a folder instead, for files in it.

    Raises:
        ValueError: If it cannot.
    """
    path = Path(path)
    nearest = path if folder else path.parent  # folder that is there
    try:
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        if not nearest.is_dir():
            reason = f"{nearest} is no folder"
        elif path.is_dir() and not folder:
            reason = "it is a folder, expected a file"
        else:
            with tempfile.TemporaryFile(dir=nearest):
                return
    except OSError as error:
        reason = f"in {nearest}: {error.strerror}"
    raise ValueError(f"--output {path} cannot be written: {reason}")


@contextmanager
def written_whole(path: str | Path) -> Iterator[Path]:
    """Let a file appear complete or not at all; its folder is made.

    Yields:
        The file to write, of the same name, in a folder that is gone afterwards.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".unfinished-", dir=path.parent) as scratch:
        unfinished = Path(scratch) / path.name
        yield unfinished
        os.replace(unfinished, path)

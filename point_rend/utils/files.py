"""Writing of files that are complete or absent.

A file is written under a temporary name in its own folder, flushed to the disk and renamed. An
error or a crash leaves the former file, if there was one.
"""

import errno
import json
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

GONE = {errno.ENOENT, errno.ENOTDIR, errno.ESTALE, errno.ENODEV, errno.ENOTCONN}
MAX_LINE = 1 << 20  # bytes
TAKEN = {errno.ENOTEMPTY, errno.EEXIST, errno.EISDIR}
LEFTOVERS = ".*.tmp*"  # glob pattern of the files that a killed process leaves


class NotSavedError(OSError):
    """A file could not be saved; the former one, if any, is unchanged."""

    def __init__(self, path: Path, error: OSError) -> None:
        reason = f"{path} could not be saved ({error.strerror or error})"
        advice = "free some space or make the folder writable; the files saved before are unchanged"
        if error.errno in GONE:
            advice = "its folder was removed, or the disk of it is no longer there"
        elif error.errno in TAKEN:
            advice = "a folder has its name, which another process may have just written"
        super().__init__(error.errno, f"{reason}: {advice}")

    def __str__(self) -> str:
        return str(self.strerror)


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Let a file appear complete or not at all, for a writer that takes a path.

    The folder of the file is created.

    Yields:
        The path to write to, with the suffix of `path`.

    Raises:
        NotSavedError: If the operating system refuses.
    """
    path = Path(path)
    with _renamed_at_the_end(path, f".tmp{path.suffix}") as temporary:
        yield temporary
        _flush(temporary)


@contextmanager
def atomic_file(path: str | Path) -> Iterator[BinaryIO]:
    """Let a file appear complete or not at all, for a writer that takes an open file.

    The folder of the file is created.

    Yields:
        The file, open for writing and reading.

    Raises:
        NotSavedError: If the operating system refuses.
    """
    with _renamed_at_the_end(Path(path)) as temporary, open(temporary, "x+b") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def atomic_folder(path: str | Path) -> Iterator[Path]:
    """Let a folder appear complete or not at all; `path` is absent or an empty folder.

    Yields:
        An empty folder to fill.

    Raises:
        NotSavedError: If the operating system refuses.
    """
    with _renamed_at_the_end(Path(path)) as temporary:
        temporary.mkdir()
        yield temporary
        for folder, _, names in os.walk(temporary):
            for name in names:
                _flush(Path(folder, name))
            _flush(Path(folder))


def write_bytes(path: str | Path, data: bytes) -> None:
    """Write a file as :func:`atomic_file` does."""
    with atomic_file(path) as file:
        file.write(data)


def write_text(path: str | Path, text: str) -> None:
    """Write a file in UTF-8 as :func:`atomic_file` does."""
    write_bytes(path, text.encode("utf-8"))


@contextmanager
def _renamed_at_the_end(path: Path, ending: str = ".tmp") -> Iterator[Path]:
    """Rename a temporary file or folder to `path` after the block; remove it after an error."""
    temporary = path.with_name(f".{secrets.token_hex(8)}{ending}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise NotSavedError(path, error) from error
    try:
        yield temporary
        os.replace(temporary, path)
        _flush(path.parent)
    except BaseException as error:
        if temporary.is_dir():
            shutil.rmtree(temporary, ignore_errors=True)
        else:
            with suppress(OSError):
                temporary.unlink()
        # Other errors are those of the writer, such as of a file that it reads.
        of_this_file = getattr(error, "filename", None) in (None, temporary, str(temporary))
        if isinstance(error, OSError) and error.errno is not None and of_this_file:
            inner = error.__cause__ if isinstance(error, NotSavedError) else None
            raise NotSavedError(path, inner if isinstance(inner, OSError) else error) from error
        raise


def _flush(path: Path) -> None:
    """Make a file, or the names in a folder, survive a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # from file systems that cannot flush folders
            raise
    finally:
        os.close(descriptor)


def end_with_whole_line(path: str | Path) -> None:
    """Make a file of JSON lines end with a whole line, if it exists.

    A process that is killed while it writes leaves part of a line, which is cut off.

    Raises:
        OSError: If the operating system refuses.
    """
    if not os.path.exists(path):
        return
    with open(path, "r+b") as file:
        size = file.seek(0, os.SEEK_END)
        start = max(0, size - MAX_LINE)
        file.seek(start)
        tail = file.read(MAX_LINE)
        end = tail.rfind(b"\n") + 1
        if end == len(tail) or (end == 0 and start > 0):
            return
        try:
            json.loads(tail[end:])
        except ValueError:
            file.truncate(start + end)
        else:
            file.write(b"\n")


def check_writable(folder: str | Path) -> None:
    """Make sure that files can be created in a folder that exists; leave nothing there.

    Raises:
        OSError: If they cannot.
    """
    with tempfile.TemporaryFile(dir=folder):
        pass


def check_output(
    path: str | Path,
    *,
    flag: str = "--output",
    folder: bool = False,
    inputs: Iterable[str | Path] = (),
    may_replace: Callable[[Path], bool] | None = None,
) -> None:
    """Make sure, before a long computation, that its output can be written; create nothing.

    Args:
        path: A file, whose folder need not exist, or a folder.
        flag: Option that names it, for messages.
        folder: Whether it is a folder.
        inputs: Files that may not be overwritten.
        may_replace: Whether a file with content may be overwritten; by default any may.

    Raises:
        ValueError: If it cannot be written, or if this would overwrite such a file.
    """
    check_that_inputs_stay(inputs, [path], flag=flag)
    path = Path(path)
    nearest = path if folder else path.parent  # folder that exists
    try:
        while not os.path.lexists(nearest):
            nearest = nearest.parent
        if not nearest.is_dir():
            reason = f"{nearest} is not a folder"
        elif path.is_dir() and not folder:
            reason = "it is a folder, expected a file"
        elif not folder and (
            (path.exists() and not path.is_file()) or nearest.resolve() == Path(os.devnull).parent
        ):
            reason = "it is a device or a pipe, expected a file"
        else:
            check_writable(nearest)
            if may_replace and path.is_file() and path.stat().st_size and not may_replace(path):
                raise ValueError(
                    f"{flag}: {path} exists, and this command has not written it: choose another "
                    "name, or remove it"
                )
            return
    except OSError as error:
        reason = f"in {nearest}: {error.strerror}"
    raise ValueError(f"{flag} {path} cannot be written: {reason}")


def check_that_inputs_stay(
    inputs: Iterable[str | Path], outputs: Iterable[str | Path], *, flag: str = "--output"
) -> None:
    """Refuse to overwrite an input, under whatever name or link.

    Args:
        inputs: Files; those that do not exist are ignored.
        outputs: Files; most do not exist yet.
        flag: Option that names them, for messages.

    Raises:
        ValueError: If an output is an input, too.
    """
    known = {_identity(file): file for file in inputs if os.path.exists(file)}
    for output in outputs:
        file = known.get(_identity(output)) if os.path.exists(output) else None
        if file is not None:
            raise ValueError(f"{flag}: {output} is the input {file}, which would be overwritten")


def _identity(path: str | Path) -> tuple[int, int]:
    """Return what all names of a file have in common."""
    status = os.stat(path)
    return status.st_dev, status.st_ino

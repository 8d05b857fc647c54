"""Opening of a user's files: regular files of bounded size, without ever waiting."""

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path

BLOCK = 1 << 16
KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def open_regular_file(path: str | Path, *, what: str) -> BufferedReader:
    """Open a regular file, or a link to one, for reading.

    A pipe without a writer would block an ordinary open, and a device may never end.

    Args:
        path: The file.
        what: Its role for messages, such as "config file".

    Raises:
        FileNotFoundError: If it does not exist.
        ValueError: If it is a folder, a pipe or a device, or its name is impossible.
        OSError: If the operating system refuses.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | getattr(os, "O_CLOEXEC", 0))
    except FileNotFoundError as error:
        raise FileNotFoundError(errno.ENOENT, f"{what} does not exist", str(path)) from error
    except OSError as error:
        if error.errno == errno.ENXIO:  # of a socket, and of a device without a driver
            raise ValueError(f"{what} {path}: a socket or a device, expected a file") from error
        raise OSError(error.errno, f"{what} cannot be read: {error.strerror}", str(path)) from error
    except ValueError as error:  # a null character
        raise ValueError(f"{what} {str(path)!r:.200}: no file can have this name") from error
    kind = stat.S_IFMT(os.fstat(descriptor).st_mode)
    if kind != stat.S_IFREG:
        os.close(descriptor)
        raise ValueError(f"{what} {path}: {KINDS.get(kind, 'not a regular file')}, expected a file")
    os.set_blocking(descriptor, True)
    return open(descriptor, "rb")


def check_regular_file(path: str | Path, *, what: str) -> None:
    """Make sure that a file can be opened, before a library does it.

    Raises:
        FileNotFoundError: As :func:`open_regular_file`.
        ValueError: As :func:`open_regular_file`.
        OSError: As :func:`open_regular_file`.
    """
    open_regular_file(path, what=what).close()


def check_size(file: BufferedReader, where: str, max_bytes: int) -> None:
    """Refuse an open file that is too large.

    Args:
        file: The file.
        where: Its role and path for the message.
        max_bytes: Largest size.

    Raises:
        ValueError: If it is larger.
    """
    size = os.fstat(file.fileno()).st_size
    if size > max_bytes:
        raise ValueError(f"{where}: {size} bytes or more, expected at most {max_bytes}")


def read_bytes(path: str | Path, *, what: str, max_bytes: int) -> bytes:
    """Read a whole regular file of bounded size.

    Args:
        path: The file.
        what: Its role for messages, such as "config file".
        max_bytes: Largest size that is read.

    Raises:
        FileNotFoundError: As :func:`open_regular_file`.
        ValueError: As :func:`open_regular_file`, or if the file is larger.
        OSError: As :func:`open_regular_file`.
    """
    with open_regular_file(path, what=what) as file:
        check_size(file, f"{what} {path}", max_bytes)
        # Some files, such as those of /proc, have more content than size.
        size = os.fstat(file.fileno()).st_size
        content = file.read(size + 1)  # read() allocates its argument
        while size < len(content) <= max_bytes and (more := file.read(BLOCK)):
            content += more
    if len(content) > max_bytes:
        raise ValueError(
            f"{what} {path}: {len(content)} bytes or more, expected at most {max_bytes}"
        )
    return content

"""Decoding of images in processes of their own, while the model computes.

A decoder for a broken file may crash, or never end: the process is replaced, the image is tried
once more, and only this image has an error.
"""

import contextlib
import functools
import os
import signal
import sys
import tempfile
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import connection, get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from point_rend.batch_inference.items import Item
from point_rend.utils.bands import read_pixels
from point_rend.utils.downloads import download_into, is_url
from point_rend.utils.files import NotSavedError, atomic_file
from point_rend.utils.pictures import PictureError
from point_rend.utils.pixel_format import PLAIN, PixelFormat
from point_rend.utils.program import program
from point_rend.utils.signals import SIGNALS, end_with_parent, signals_wait

AHEAD = 2  # images that a worker has decoded or is about to decode
HANG_SECONDS = 120.0  # for one image, its download included
START_SECONDS = 120.0  # for a worker to start
ENDING_SECONDS = 20.0  # for a worker that dies, whose memory may have to be written
TRIES = 2  # of an image whose decoding ends the process


class Unreadable(NamedTuple):
    """The reason why an image could not be read, in one line."""

    reason: str


class _Fatal(NamedTuple):
    """The reason why no image can be read, such as a missing package."""

    reason: str


Decoded = np.ndarray | Unreadable  # (H, W, C) as `Predictor` takes it


def decode(uri: str, pixel_format: PixelFormat = PLAIN) -> Decoded:
    """Read an image from a local path or a URL.

    Args:
        uri: The path or URL.
        pixel_format: Pixels that the model expects.

    Raises:
        NotSavedError: If a download cannot be written.
        ValueError: If no image can be read, such as without a package.
    """
    try:
        if not is_url(uri):
            return read_pixels(uri, pixel_format)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "image")
            with atomic_file(path) as file:
                download_into(uri, file)
            try:
                return read_pixels(path, pixel_format)
            except PictureError as error:
                return Unreadable(f"{uri} {error.fault}")
    except NotSavedError:
        raise
    except (OSError, PictureError) as error:
        return Unreadable(str(error))


class Decoder:
    """Reads images in worker processes, in order, and a bounded number of them ahead.

    It is a context manager; the workers end with it, and with this process however that ends.

    Args:
        workers: Number of processes; 0 to read in this one.
        pixel_format: Pixels that the model expects.
        hang_seconds: Time for one image after which its worker is replaced.
        read: As :func:`decode`; a function at the top level of a module.
    """

    def __init__(
        self,
        workers: int,
        pixel_format: PixelFormat = PLAIN,
        *,
        hang_seconds: float = HANG_SECONDS,
        read: Callable[..., Decoded] = decode,
    ) -> None:
        self.read = functools.partial(read, pixel_format=pixel_format)
        self.hang_seconds = hang_seconds
        self._workers = [_Worker(self.read) for _ in range(workers)]

    def __enter__(self) -> "Decoder":
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.end()

    def images(self, items: Sequence[Item]) -> Iterator[Decoded]:
        """Yield the images of some items in their order.

        Raises:
            OSError, ValueError: As :func:`decode`.
        """
        if not self._workers:
            for item in items:
                yield self.read(item.uri)
            return
        number = len(self._workers)
        waiting: deque[Item] = deque()  # those that a worker has been given
        following = iter(enumerate(items))

        def give() -> None:
            for position, item in following:
                waiting.append(item)
                self._workers[position % number].give(item.uri)
                return

        try:
            for _ in range(AHEAD * number):
                give()
            for position in range(len(items)):
                decoded = self._take(position % number, waiting[0])
                waiting.popleft()
                give()
                yield decoded
        finally:
            if waiting:  # the rest is no longer wanted
                self._workers = [worker.replaced([]) for worker in self._workers]

    def _take(self, place: int, item: Item) -> Decoded:
        """Return the next image of a worker, which is replaced if it dies or hangs."""
        for left in reversed(range(TRIES)):
            worker = self._workers[place]
            fault = worker.fault_within(self.hang_seconds)
            if not fault:
                with contextlib.suppress(EOFError, OSError):
                    return worker.take()
                fault = worker.death()
            rest = list(worker.given)
            self._workers[place] = worker.replaced(rest if left else rest[1:])
            what = "it is tried again" if left else "it has no results"
            print(f"{program()}: {item.uri}: {fault}; {what}", file=sys.stderr, flush=True)
        return Unreadable(f"{item.uri}: {fault}")


class _Worker:
    """A process that decodes what it is given, in order.

    Attributes:
        given: What it has been given and not returned.
    """

    def __init__(self, read: Callable[[str], Decoded]) -> None:
        self.read = read
        self.given: deque[str] = deque()
        self._has_started = False
        context = get_context("spawn")
        self._connection, other = context.Pipe()
        self._process = context.Process(target=_work, args=(other, os.getpid(), read), daemon=True)
        with signals_wait():  # until it ignores those that are meant for this process
            self._process.start()
        other.close()

    def give(self, uri: str) -> None:
        """Let the worker decode an image."""
        self.given.append(uri)
        with contextlib.suppress(OSError):  # it has died, which `fault_within` finds
            self._connection.send(uri)

    def fault_within(self, seconds: float) -> str:
        """Wait for an image; return what happened in its place, if anything."""
        if not self._has_started:
            fault = self._silence(START_SECONDS, "its decoder did not start within")
            if fault:
                return fault
            with contextlib.suppress(EOFError, OSError):
                self._connection.recv()
            self._has_started = True
        return self._silence(seconds, "its decoding took more than")

    def _silence(self, seconds: float, what: str) -> str:
        """Wait for a message; return the reason if none comes."""
        found = connection.wait([self._connection, self._process.sentinel], timeout=seconds)
        if self._connection in found:
            return ""
        return self.death() if found else f"{what} {seconds:g} seconds"

    def take(self) -> Decoded:
        """Receive an image.

        Raises:
            EOFError, OSError: If the worker has died in between.
            ValueError: If no image can be read.
        """
        header: Any = self._connection.recv()
        decoded: Decoded
        if isinstance(header, _Fatal):
            raise ValueError(header.reason)
        if isinstance(header, Unreadable):
            decoded = header
        else:
            shape, kind = header
            decoded = np.empty(shape, kind)
            self._connection.recv_bytes_into(decoded.reshape(-1).view(np.uint8))
        self.given.popleft()
        return decoded

    def death(self) -> str:
        """Describe the end of the process."""
        self._process.join(ENDING_SECONDS)
        code = self._process.exitcode
        if code is not None and code < 0:
            return f"its decoding ended the process by {signal.Signals(-code).name}"
        return f"its decoding ended the process with exit code {code}"

    def replaced(self, rest: Sequence[str]) -> "_Worker":
        """End this worker; return a new one that has been given the rest of its images."""
        self.end()
        worker = _Worker(self.read)
        for uri in rest:
            worker.give(uri)
        return worker

    def end(self) -> None:
        """Kill the process: it has no work to save."""
        self._process.kill()
        self._process.join()
        self._connection.close()


def _work(to_parent: connection.Connection, parent: int, read: Callable[[str], Decoded]) -> None:
    """Decode one image after another: the body of a worker."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)
    end_with_parent(parent)
    with contextlib.suppress(EOFError, OSError):
        to_parent.send(None)  # it has started
        while True:
            found = _read_or_fail(to_parent.recv(), read)
            if isinstance(found, np.ndarray):
                to_parent.send((found.shape, found.dtype.str))
                to_parent.send_bytes(np.ascontiguousarray(found).data.cast("B"))
            else:
                to_parent.send(found)


def _read_or_fail(uri: str, read: Callable[[str], Decoded]) -> Decoded | _Fatal:
    try:
        return read(uri)
    except (OSError, ValueError) as error:
        return _Fatal(str(error))

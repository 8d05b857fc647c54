"""Calls from the threads of a server that run in the main thread."""

from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

Job = tuple[Future[Any], Callable[..., Any], tuple[Any, ...]]


class MainThread:
    """Runs the calls of other threads in the main thread, one after the other.

    Signals reach the main thread alone: they end such a call at once, and no thread is left inside
    PyTorch when the process ends.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._ended = False

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function in the main thread; return its result, or raise its exception.

        Raises:
            CancelledError: If the main thread has ended its work.
        """
        future: Future[Any] = Future()
        self._jobs.put((future, function, arguments))
        if self._ended:
            self._cancel_all()
        return future.result()

    def work(self) -> None:
        """Run the calls until :meth:`stop`, or until an exception such as `KeyboardInterrupt`."""
        try:
            while (job := self._jobs.get()) is not None:
                future, function, arguments = job
                try:
                    future.set_result(function(*arguments))
                except Exception as error:
                    future.set_exception(error)
                except BaseException:
                    future.cancel()
                    raise
        finally:
            self._ended = True
            self._cancel_all()

    def stop(self) -> None:
        """End :meth:`work` after the present call."""
        self._jobs.put(None)

    def _cancel_all(self) -> None:
        while True:
            try:
                job = self._jobs.get_nowait()
            except Empty:
                return
            if job is not None:
                job[0].cancel()

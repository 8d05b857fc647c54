"""Writers of a training's metrics that end it with one line where they cannot write.

Detectron2's writers do the writing. Here, a half line that a killed training has left in
metrics.json is cut off first, files are opened when something is written, and a failure is reported
once, by name.
"""

import contextlib
import functools
import threading
from collections.abc import Callable
from pathlib import Path

from detectron2.utils.events import (
    CommonMetricPrinter,
    EventWriter,
    JSONWriter,
    TensorboardXWriter,
)

from point_rend.engine.output_folder import EVENTS, METRICS_NAME
from point_rend.utils.files import NotSavedError, end_with_whole_line


def build_writers(output_dir: str, max_iter: int) -> list[EventWriter]:
    """Build Detectron2's writers: to the log, to metrics.json and to TensorBoard's events.

    Args:
        output_dir: OUTPUT_DIR of the run.
        max_iter: Total number of iterations.
    """
    return [
        CommonMetricPrinter(max_iter),
        MetricsWriter(Path(output_dir, METRICS_NAME)),
        EventsWriter(Path(output_dir, EVENTS)),
    ]


class _ReportingWriter(EventWriter):
    """A writer that reports its first failure and is silent from then on.

    Args:
        path: The file that messages name, or a pattern of it.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._writer: EventWriter | None = None
        self._has_failed = False

    def write(self) -> None:
        """Write what is new.

        Raises:
            NotSavedError: If the operating system refuses, the first time.
        """
        if self._has_failed:
            return
        try:
            if self._writer is None:
                self._writer = self._open()
            self._writer.write()
        except OSError as error:
            self._has_failed = True
            self._give_up()
            raise NotSavedError(self.path, error) from error

    def close(self) -> None:
        """Close the file.

        Raises:
            NotSavedError: If the last data cannot be written.
        """
        if self._writer is None or self._has_failed:
            return
        try:
            self._writer.close()
        except OSError as error:
            self._has_failed = True
            raise NotSavedError(self.path, error) from error

    def _open(self) -> EventWriter:
        raise NotImplementedError

    def _give_up(self) -> None:
        """Close after a failure, without another."""
        if self._writer is not None:
            with contextlib.suppress(OSError):
                self._writer.close()


class MetricsWriter(_ReportingWriter):
    """Detectron2's writer of metrics.json; the file always ends with a whole line."""

    def _open(self) -> EventWriter:
        end_with_whole_line(self.path)
        return JSONWriter(str(self.path))

    def _give_up(self) -> None:
        super()._give_up()
        with contextlib.suppress(OSError):
            end_with_whole_line(self.path)


class EventsWriter(_ReportingWriter):
    """Detectron2's writer of TensorBoard's events.

    A thread of TensorBoard writes them. If it fails, the next call here raises its error; Python
    would print a traceback as well.
    """

    def _open(self) -> EventWriter:
        self._former_hook = threading.excepthook
        threading.excepthook = functools.partial(_ignore_event_threads, self._former_hook)
        return TensorboardXWriter(str(self.path.parent))

    def close(self) -> None:
        """Close the file.

        Raises:
            NotSavedError: If the last data cannot be written.
        """
        try:
            super().close()
        finally:
            self._restore_hook()

    def _give_up(self) -> None:
        super()._give_up()
        self._restore_hook()

    def _restore_hook(self) -> None:
        if self._writer is not None:
            threading.excepthook = self._former_hook


def _ignore_event_threads(
    otherwise: Callable[[threading.ExceptHookArgs], object], args: threading.ExceptHookArgs
) -> None:
    """Handle an error that has ended a thread: silently in one of TensorBoard's."""
    if not type(args.thread).__module__.startswith("tensorboard."):
        otherwise(args)

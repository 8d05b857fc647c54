"""Log messages that are expected where they would be logged; logs that cannot be written."""

import functools
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from point_rend.utils.files import NotSavedError


@contextmanager
def only_errors(*names: str) -> Iterator[None]:
    """Log nothing below errors from some loggers while the context lasts.

    Args:
        names: Names of the loggers.
    """
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def report_write_errors(*names: str) -> None:
    """Let a log file that cannot be written raise one error; logging would print tracebacks.

    A terminal, or whatever reads the output, that is gone only ends the output there.

    Args:
        names: Names of the loggers whose handlers do so from now on.
    """
    for name in names:
        for handler in logging.getLogger(name).handlers:
            if isinstance(handler, logging.StreamHandler):
                handler.handleError = functools.partial(_give_up, handler)  # type: ignore[method-assign]


def _give_up(handler: logging.StreamHandler, record: logging.LogRecord) -> None:
    """Handle an error within a handler.

    Raises:
        NotSavedError: If it is one of the operating system about a file.
    """
    error = sys.exc_info()[1]
    if not isinstance(error, OSError):
        logging.Handler.handleError(handler, record)
        return
    stream = handler.stream
    for logger in [*logging.Logger.manager.loggerDict.values(), logging.root]:
        if isinstance(logger, logging.Logger):
            # A new list, since the handlers of this record are being called.
            logger.handlers = [x for x in logger.handlers if getattr(x, "stream", None) != stream]
    if stream in (sys.stdout, sys.stderr):
        return
    with suppress(OSError):
        stream.close()
    raise NotSavedError(Path(stream.name), error) from error

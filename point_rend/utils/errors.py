"""User errors and exit codes."""

import contextlib
import difflib
import os
import signal
import sys
from collections.abc import Callable, Iterable, Iterator

from point_rend.utils.program import program

# Exit codes of all commands.
FAILED = 1  # the work is incomplete
USER_ERROR = 2  # as of argparse
DIVERGED = 3  # a training met a loss or a gradient that is not finite


def signal_exit_code(number: int) -> int:
    """Return the exit code of a process that a signal has ended, as shells have it."""
    return 128 + number


INTERRUPTED = signal_exit_code(signal.SIGINT)

LONGEST_TEXT = 200  # characters that a message quotes
LONGEST_LINE = 4000  # characters of an error's line


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """Return a text as a message quotes it: without control characters, and the middle left out."""
    if len(text) > longest:
        left_out = len(text) - longest
        text = f"{text[: longest * 3 // 4]} [{left_out} characters] {text[-(longest // 4) :]}"
    return text if text.isprintable() else repr(text)[1:-1]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the known names nearest to `name`, or nothing."""
    if len(name) > LONGEST_TEXT:  # the comparison would take minutes
        return ""
    by_upper = {candidate.upper(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.upper(), by_upper, n=3)
    if not nearest:
        return ""
    return "; did you mean " + " or ".join(by_upper[match] for match in nearest) + "?"


def shorten(name: str, limit: int = 100) -> str:
    """Return a name from a file as a message can show it: its first characters, in one line."""
    printable = "".join(x if x.isprintable() else "?" for x in name[:limit])
    return printable if len(name) <= limit else f"{printable}..."


class TrainingStop(BaseException):
    """Ends a training. It is not an Exception, so that no handler logs or swallows it.

    Args:
        reason: One line for the user.
        exit_code: Exit code of the process.
        saves: Whether to save the last iteration first.
        together: Whether all processes of the run are stopping.
    """

    def __init__(
        self, reason: str, *, exit_code: int, saves: bool = True, together: bool = False
    ) -> None:
        super().__init__(reason)
        self.reason = reason
        self.exit_code = exit_code
        self.saves = saves
        self.together = together


@contextlib.contextmanager
def user_errors() -> Iterator[None]:
    """Report errors that the user can correct in one line; bugs keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        say_error(error)
        raise SystemExit(USER_ERROR) from error


def print_result(text: str) -> None:
    """Print a result of a command; what standard output cannot encode is written with escapes.

    Raises:
        OSError: If standard output cannot be written: its reader has ended, or its disk is full.
    """
    encoding = sys.stdout.encoding or "utf-8"
    text = text.encode(encoding, "backslashreplace").decode(encoding)
    try:
        print(text, flush=True)
    except OSError as error:
        # Python would fail again when it flushes the rest at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        raise OSError(f"standard output cannot be written: {error.strerror}") from error


_is_new: Callable[[str], bool] | None = None


def say_once(is_new: Callable[[str], bool]) -> None:
    """Leave out the errors of this process that others of its run have printed.

    Args:
        is_new: Returns whether this process is the first that asks for a message.
    """
    global _is_new
    _is_new = is_new


def say_error(error: object) -> None:
    """Print the reason why the program ends, in one line of bounded length."""
    message = shortened(" ".join(str(error).split()), LONGEST_LINE)
    if _is_new is not None and not _is_new(message):
        return
    with contextlib.suppress(OSError):  # the exit code remains
        print(f"{program()}: error: {message}", file=sys.stderr, flush=True)

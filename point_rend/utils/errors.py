"""User errors and exit codes."""

import contextlib
import difflib
import sys
from collections.abc import Iterable, Iterator

from point_rend.utils.program import program


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Return "; did you mean …?" with the known names nearest to `name`, or nothing."""
    by_upper = {candidate.upper(): candidate for candidate in known}
    nearest = difflib.get_close_matches(name.upper(), by_upper, n=3)
    if not nearest:
        return ""
    return "; did you mean " + " or ".join(by_upper[match] for match in nearest) + "?"


USER_ERROR = 2  # exit code, as of argparse


class TrainingStop(BaseException):
    """Ends a training; no error, so that nothing on the way logs a traceback or swallows it.

    Args:
        reason: One line for the user.
        exit_code: Exit code of the process.
        saves: Whether to save the last iteration before.
        together: Whether the other processes of the run are about to end, too.
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
    """Turn errors that the user can put right into one line; bugs keep their traceback."""
    try:
        yield
    except (ValueError, OSError) as error:
        say_error(error)
        raise SystemExit(USER_ERROR) from error


def say_error(error: object) -> None:
    """Print one line that says why the program ends."""
    message = " ".join(str(error).split())
    print(f"{program()}: error: {message}", file=sys.stderr, flush=True)

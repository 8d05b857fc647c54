"""The name and the words with which the running command was started."""

import os
import sys

COMMAND = "pointrend"
PACKAGE_SCRIPT = os.path.join("point_rend", "__main__.py")


def program() -> str:
    """Return the name of the running command: `pointrend train`, or that of the script."""
    script = sys.argv[0]
    if _is_command(script) and len(sys.argv) > 1:
        return f"{COMMAND} {sys.argv[1]}"
    return COMMAND if _is_command(script) else os.path.basename(script)


def command_words() -> tuple[list[str], list[str]]:
    """Split the command line of this process.

    Returns:
        The words that start the program, without the interpreter: `train_net.py`, or
        `.../bin/pointrend train`, or `-m point_rend train`; and its options.
    """
    script, *options = sys.argv
    if not _is_command(script):
        return [script], options
    start = ["-m", "point_rend"] if script.endswith(PACKAGE_SCRIPT) else [script]
    return [*start, *options[:1]], options[1:]


def is_executable() -> bool:
    """Return whether the program starts without naming an interpreter: the installed command."""
    return os.path.basename(sys.argv[0]) == COMMAND


def _is_command(script: str) -> bool:
    return os.path.basename(script) == COMMAND or script.endswith(PACKAGE_SCRIPT)

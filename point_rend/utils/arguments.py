"""Types of command-line arguments."""

import argparse
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path


def named_result(text: str) -> tuple[str, Path]:
    """Read [NAME=]FILE, a file that exists."""
    name, file = named_file(text)
    if not file.is_file():
        raise argparse.ArgumentTypeError(
            f"expected [NAME=]FILE with a file that exists, got {text}"
        )
    return name, file


def named_file(text: str) -> tuple[str, Path]:
    """Read NAME=FILE, or FILE, which then is its own name; only FILE may hold further "="."""
    name, equals, file = text.partition("=")
    if not equals or os.path.exists(text):
        return text, Path(text)
    return name or file, Path(file)


def check_names(flag: str, named: Sequence[tuple[str, Path]]) -> None:
    """Refuse a name that a flag gives to several files or folders.

    Raises:
        ValueError: If there is one.
    """
    for name, number in Counter(name for name, _ in named).items():
        if number > 1:
            raise ValueError(f"{flag}: the name {name!r} is given {number} times, expected once")

"""`pointrend evaluate`: `pointrend train --eval-only`."""

import sys
from collections.abc import Sequence

from point_rend.cli import train


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    train.main(["--eval-only", *(sys.argv[1:] if argv is None else argv)])

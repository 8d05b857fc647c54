"""`pointrend evaluate`: evaluate a model; the same as `pointrend train --eval-only`.

With --model in place of --config-file it evaluates a file of `pointrend export`.
"""

import argparse
from collections.abc import Sequence

from point_rend.engine import arguments


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `pointrend train`, with --eval-only set."""
    parser = arguments.build_parser("Evaluate a model on DATASETS.TEST.", exported=True)
    parser.set_defaults(eval_only=True)
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    args = build_parser().parse_args(argv)
    from point_rend.engine.run import start

    start(args)

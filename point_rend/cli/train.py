"""`pointrend train`: train a model."""

from collections.abc import Sequence

from point_rend.engine.arguments import build_parser
from point_rend.utils.signals import signals_end_the_command


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct, with code 3 after a loss
            or a gradient that is not finite, with 128 + n after signal n.
    """
    args = build_parser().parse_args(argv)
    when = "" if args.eval_only else "outside of the training loop: nothing is lost"
    with signals_end_the_command(when):
        from point_rend.engine.run import start

        start(args)

"""`pointrend train`: train a model."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from point_rend.engine.arguments import build_parser
from point_rend.utils.signals import signals_end_the_command

if TYPE_CHECKING:
    from point_rend.engine.trainer import Trainer


def main(argv: Sequence[str] | None = None, *, trainer: "type[Trainer] | None" = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.
        trainer: A subclass of :class:`Trainer` that trains and evaluates in its place, at the top
            level of a module.

    Raises:
        SystemExit: With code 2 after an error that the user can correct, with code 3 after a loss
            or a gradient that is not finite, with 128 + n after signal n.
    """
    args = build_parser().parse_args(argv)
    when = "" if args.eval_only else "outside of the training loop: nothing is lost"
    with signals_end_the_command(when):
        from point_rend.engine.run import start
        from point_rend.engine.trainer import Trainer

        start(args, trainer or Trainer)

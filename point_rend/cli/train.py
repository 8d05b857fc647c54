"""Train and evaluate."""

import os
from collections.abc import Sequence

from point_rend.engine.launch import AUTO, join, launch, leave, place_by_launcher
from point_rend.engine.preflight import check_machine
from point_rend.engine.run import run
from point_rend.engine.setup import build_parser, read_config, set_up_together, setup
from point_rend.utils.errors import user_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process if not given.

    Raises:
        SystemExit: With code 2 after an error that the user can put right, with code 3 after a
            loss or a gradient that is not finite.
    """
    args = build_parser().parse_args(argv)
    with user_errors():
        if not 0 <= args.machine_rank < args.num_machines:
            raise ValueError(
                f"--machine-rank is {args.machine_rank} and --num-machines {args.num_machines}: "
                "expected 1 machine or more, numbered from 0"
            )
        if args.num_machines > 1 and args.dist_url == AUTO:
            raise ValueError(
                f"--num-machines is {args.num_machines}: expected --dist-url "
                "tcp://<address of machine 0>:<a free port there>, the same on all machines"
            )
        asked = args.num_gpus * args.num_machines
        place = place_by_launcher(os.environ, asked=asked)
        if place is None:
            job = setup(args)
        else:
            cfg = read_config(args)
            check_machine(cfg, 1)
            join(place, cfg.MODEL.DEVICE)
    if place is not None:
        run(*set_up_together(args))
        leave()
        return
    launch(
        run,
        job,
        device=job.cfg.MODEL.DEVICE,
        num_local=args.num_gpus,
        num_machines=args.num_machines,
        machine_rank=args.machine_rank,
        url=args.dist_url,
    )

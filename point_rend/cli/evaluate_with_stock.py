"""`pointrend evaluate-with-stock`: evaluate one checkpoint with both projects' heads.

    pointrend evaluate-with-stock --config-file output/my_run/config.yaml \
        --register-coco NAME JSON IMAGE_ROOT MODEL.WEIGHTS output/my_run/model_final.pth

evaluates on DATASETS.TEST with these heads and with those that Detectron2 ships, and prints the
metrics of both and their differences. The options are those of `pointrend train`.
"""

import argparse
from collections.abc import Sequence

from point_rend.engine import arguments


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of `pointrend train`, with --eval-only set."""
    parser = arguments.build_parser(
        "Evaluate a model on DATASETS.TEST with these heads and with those that Detectron2 ships."
    )
    parser.set_defaults(eval_only=True)
    return parser


def main(argv: Sequence[str] | None = None) -> float:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Returns:
        The largest difference of any metric.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    args = build_parser().parse_args(argv)
    from point_rend.experiments.stock_evaluation import compare_results, evaluate_both

    ours, stock = evaluate_both(args)
    table, largest = compare_results(ours, stock)
    print(f"\n{table}\n\nlargest difference: {largest:.6f}")
    return largest

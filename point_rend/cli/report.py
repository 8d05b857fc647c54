"""`pointrend report`: an evaluation on one HTML page: tables, curves, and a gallery of masks.

    pointrend report --annotations output/demo/shapes/annotations/instances_val.json \
        --image-root output/demo/shapes/val --output output/report.html \
        --results coarse=output/demo/coarse/inference/shapes_val/coco_instances_results.json \
        --results PointRend=output/demo/pointrend/inference/shapes_val/coco_instances_results.json \
        --run PointRend=output/demo/pointrend

Of two results, the first is the baseline. A single result is compared with the ground truth. The
page is one file that any browser opens without a network. No model is run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.arguments import (
    MAX_DETS_FLAG,
    add_max_dets_argument,
    add_results_argument,
    check_min_score,
    check_names,
    named_file,
)
from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.files import check_output, write_bytes
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Show an evaluation on one HTML page."
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotations")
    parser.add_argument("--image-root", type=Path, required=True, help="folder of the images")
    add_results_argument(
        parser, named_file, "COCO results with masks; once, or twice with the baseline first"
    )
    add_max_dets_argument(parser)
    parser.add_argument(
        "--run",
        type=named_file,
        action="append",
        default=[],
        metavar="[NAME=]FOLDER",
        help="OUTPUT_DIR of a training, for its curves; may be repeated",
    )
    parser.add_argument("--output", type=Path, required=True, help="the page, an HTML file")
    parser.add_argument(
        "--items", type=int, default=48, help="maximum number of objects in the gallery (48)"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="minimum score of results in the gallery (0.5)"
    )
    parser.add_argument(
        "--without-photographs",
        action="store_true",
        help="show plain gray, for photographs that must not be shared",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if a file cannot be used.
    """
    args = build_parser().parse_args(argv)
    from point_rend.config.checks import check_max_dets
    from point_rend.evaluation.limits import coco_limit
    from point_rend.evaluation.report.page import build_report, is_report

    with user_errors():
        check_max_dets(args.max_dets, MAX_DETS_FLAG)
        if args.items < 1:
            raise ValueError(f"--items: expected 1 or more, got {args.items}")
        if len(args.results) > 2:
            raise ValueError(f"--results: expected one or two, got {len(args.results)}")
        check_names("--results", args.results)
        check_names("--run", args.run)
        check_min_score(args.min_score)
        files = [file for _, file in args.results]
        metrics = [folder / "metrics.json" for _, folder in args.run]
        check_output(
            args.output, inputs=[args.annotations, *files, *metrics], may_replace=is_report
        )
        page = build_report(
            args.annotations,
            args.image_root,
            results=dict(args.results),
            runs=dict(args.run),
            num_items=args.items,
            min_score=args.min_score,
            limit=coco_limit(args.max_dets, MAX_DETS_FLAG),
            without_photographs=args.without_photographs,
        )
        write_bytes(args.output, page.encode("utf-8", errors="replace"))
        size = args.output.stat().st_size / 1e6
        print_result(f"{args.output}: {size:.1f} MB. Any browser opens it.")

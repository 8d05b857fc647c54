"""Compare the results of several models on one data set: a table of AP, and pictures side by side.

    pointrend compare --annotations val.json --image-root val --output output/cmp \
        --results "4×conv=output/a/inference/val/coco_instances_results.json" \
        --results "PointRend=output/b/inference/val/coco_instances_results.json"

All input comes from files that a training or an evaluation leaves behind; no model is run.
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
    named_result,
)
from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.files import check_output
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Compare results of several models."
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotations")
    parser.add_argument("--image-root", type=Path, required=True, help="folder of the images")
    add_results_argument(parser, named_result, "COCO results with masks; may be repeated")
    add_max_dets_argument(parser)
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument(
        "--num-images", type=int, default=4, help="number of images, from the first on (4)"
    )
    parser.add_argument(
        "--without-photographs",
        action="store_true",
        help="paint on plain gray, for photographs that must not be shared",
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="minimum score of drawn instances (0.5)"
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if a file cannot be used.
    """
    args = build_parser().parse_args(argv)
    from point_rend.config.checks import check_max_dets
    from point_rend.data.checks.annotations import check_ground_truth
    from point_rend.data.datasets.coco import check_file_names, read_coco
    from point_rend.evaluation.coco_ap import CocoAP
    from point_rend.evaluation.coco_results import (
        format_table,
        mask_metrics,
        read_mask_results,
    )
    from point_rend.evaluation.comparison import write_comparison
    from point_rend.evaluation.limits import coco_limit, warn_of_limit

    with user_errors():
        check_max_dets(args.max_dets, MAX_DETS_FLAG)
        check_names("--results", args.results)
        check_min_score(args.min_score)
        if args.num_images < 0:
            raise ValueError(f"--num-images: expected 0 or more, got {args.num_images}")
        if not args.image_root.is_dir():
            raise FileNotFoundError(f"--image-root: there is no folder {args.image_root}")
        check_output(args.output, folder=True)
        content = read_coco(str(args.annotations))
        names = (image["file_name"] for image in content["images"])
        check_file_names(str(args.annotations), names, args.image_root)
        check_ground_truth(args.annotations, content)
        results = {name: read_mask_results(file, content) for name, file in args.results}
        limit = coco_limit(args.max_dets, MAX_DETS_FLAG)
        for name, own in results.items():
            warn_of_limit(content, own, limit, name)
        evaluation = CocoAP(content, max_dets=limit.number)
        table = {name: mask_metrics(own, evaluation) for name, own in results.items()}
        print_result(f"\n{format_table(table)}\n")
        write_comparison(
            content,
            args.image_root,
            results,
            args.output,
            num_images=args.num_images,
            min_score=args.min_score,
            without_photographs=args.without_photographs,
        )
        print_result(f"Pictures: {args.output}")

"""Compute AP, boundary AP and AP* of files in COCO's result format, written by any framework.

    pointrend score --annotations datasets/coco/annotations/instances_val2017.json \
        --lvis-annotations datasets/lvis/lvis_v1_val_cocofied.json \
        --results "PointRend=output/inference/coco_2017_val/coco_instances_results.json"

One table per file: AP, boundary AP and, with LVIS annotations of COCO's classes (see
`pointrend prepare-cocofied-lvis`), AP* and boundary AP*. The columns are all IoU thresholds
together, IoU 0.50, IoU 0.75, and three sizes. Results without masks have box AP only.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.arguments import (
    MAX_DETS_FLAG,
    add_max_dets_argument,
    add_results_argument,
    check_names,
    named_file,
)
from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.files import check_output, write_text
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Compute AP of files in COCO's result format."
    )
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotations")
    parser.add_argument(
        "--lvis-annotations", type=Path, help="for AP*: LVIS annotations of COCO's classes"
    )
    add_results_argument(parser, named_file, "results; may be repeated")
    add_max_dets_argument(parser)
    parser.add_argument("--by-class", action="store_true", help="also show each class")
    parser.add_argument("--output", type=Path, help="JSON file for all metrics, in percent")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if a file cannot be used.
    """
    args = build_parser().parse_args(argv)
    from point_rend.config.checks import check_max_dets
    from point_rend.data.checks.annotations import check_ground_truth
    from point_rend.data.datasets.coco import read_coco
    from point_rend.evaluation.coco_ap import METRICS, CocoAP
    from point_rend.evaluation.coco_results import (
        format_table,
        has_masks,
        read_results,
    )
    from point_rend.evaluation.limits import coco_limit, lvis_limit, warn_of_limit
    from point_rend.evaluation.scoring import (
        ap_star_metrics,
        by_class,
        check_lvis,
        coco_metrics,
        is_score_file,
    )

    with user_errors():
        check_max_dets(args.max_dets, MAX_DETS_FLAG)
        check_names("--results", args.results)
        if args.output:
            inputs = [args.annotations, *(file for _, file in args.results)]
            inputs += [args.lvis_annotations] if args.lvis_annotations else []
            check_output(args.output, inputs=inputs, may_replace=is_score_file)
        content = read_coco(str(args.annotations))
        if args.lvis_annotations:
            check_lvis(args.lvis_annotations, content, args.annotations)
        files = {name: (file, read_results(file, content)) for name, file in args.results}
        masks = {name: has_masks(results, file) for name, (file, results) in files.items()}
        check_ground_truth(args.annotations, content, masks=any(masks.values()))

    limit = coco_limit(args.max_dets, MAX_DETS_FLAG)
    star_limit = lvis_limit(args.max_dets, MAX_DETS_FLAG)
    evaluation = CocoAP(content, max_dets=limit.number)
    scores = {}
    for name, (file, results) in files.items():
        warn_of_limit(content, results, limit, str(file))
        tasks = ("segm", "boundary") if masks[name] else ("bbox",)
        rows = coco_metrics(results, tasks, evaluation)
        if args.lvis_annotations:
            rows |= ap_star_metrics(results, tasks, args.lvis_annotations, star_limit)
        scores[name] = rows
        table = {row: {key: metrics[key] for key in METRICS} for row, metrics in rows.items()}
        text = f"\n{name}: {len(results)} results\n{format_table(table)}"
        if args.by_class and len(content["categories"]) > 1:  # one class alone has the overall AP
            text += f"\n\n{format_table(by_class(rows))}"
        with user_errors():
            print_result(text)
    if args.output:
        with user_errors():
            write_text(args.output, json.dumps(scores, indent=1))

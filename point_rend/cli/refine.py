"""`pointrend refine`: render masks for the boxes of any detector or annotator.

    pointrend refine --config-file output/my_run/config.yaml --boxes predictions.json \
        --images photographs --output refined.json \
        --opts MODEL.WEIGHTS output/my_run/model_final.pth

--boxes is a list in COCO's result format, as the evaluations of most detectors write it, or a file
of annotations in COCO's format, as annotation tools export it. The output is the same file with a
mask of this model in each "segmentation"; boxes, scores, ids and all other fields stay as they are,
except for the "area" of the masks. With ground truth (--annotations), AP and boundary AP before and
after are printed.

Images that cannot be read and boxes that cannot be used are named at the end; they stay as they
are, and the exit code is then 1. It is 2 after an error that stops everything, such as a category
without a class; 130 after Ctrl-C and 143 after SIGTERM, which leave nothing half-written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from point_rend.inference import options
from point_rend.utils import errors
from point_rend.utils.arguments import add_max_dets_argument

UNMAPPED = ("error", "keep")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = options.build_parser(
        "Render masks for the boxes of any detector.", folders=True, threshold=None
    )
    parser.add_argument(
        "--boxes",
        type=Path,
        required=True,
        metavar="FILE",
        help="COCO results (a list) or COCO annotations, with boxes or masks",
    )
    parser.add_argument(
        "--images", type=Path, required=True, metavar="FOLDER", help="folder of the images"
    )
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="JSON file")
    parser.add_argument(
        "--annotations",
        type=Path,
        metavar="FILE",
        help="COCO annotations with the ground truth, to print AP before and after; a list of "
        "results gets its images and the names of its categories from there",
    )
    parser.add_argument(
        "--class-map",
        metavar="MAP",
        help="the model's classes for categories of --boxes: CATEGORY=CLASS,..., or a JSON file "
        "with an object; a category is given by its name or its id. By default the names count, "
        "and the ids of the model's data set for categories without names",
    )
    parser.add_argument(
        "--unmapped",
        choices=UNMAPPED,
        default=UNMAPPED[0],
        help="boxes of categories without a class of the model: an error (default), or keep them "
        "as they are",
    )
    add_max_dets_argument(parser)
    parser.add_argument("--overwrite", action="store_true", help="replace --output if it exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With one of the codes above.
    """
    parser = build_parser()
    args = parser.parse_args(argv)
    from point_rend.refinement.run import refine

    with errors.user_errors():
        report = refine(args)
    for line in report.lines():
        print(f"{parser.prog}: {errors.shortened(line, errors.LONGEST_LINE)}", file=sys.stderr)
    if report.failures or report.faults:
        raise SystemExit(errors.FAILED)

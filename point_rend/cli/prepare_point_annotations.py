"""`pointrend prepare-point-annotations`: draw labeled points from masks, for point supervision.

    pointrend prepare-point-annotations instances_train.json points_train.json --points 10

The new file has "point_coords" and "point_labels" in place of the masks: pixels drawn uniformly in
the box of each object, and 1 where they lie in its mask, 0 elsewhere. They depend on `--seed` and
the id of the annotation alone, not on the order of the file. All else stays as it is. Objects
without a usable mask are left out, and counted.

Train on the file with INPUT.POINT_SUP True; evaluate on real masks.

The exit code is 2 if the file cannot be read or written, or has no mask.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Draw labeled points from the masks of a COCO file."
    )
    parser.add_argument("input", type=Path, help="annotations in COCO's format, with masks")
    parser.add_argument("output", type=Path, help="the JSON file with points in their place")
    parser.add_argument(
        "--points", type=int, default=10, help="points for each object (default: %(default)s)"
    )
    parser.add_argument("--seed", type=int, default=0, help="seed of the points")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    args = build_parser().parse_args(argv)
    from point_rend.data.datasets.point_annotations import write_point_annotations

    with user_errors():
        converted = write_point_annotations(
            args.input,
            args.output,
            points=args.points,
            seed=args.seed,
            overwrite=args.overwrite,
        )
        lines = [f"{args.output}: {args.points} points for each of {converted.annotations} objects"]
        if converted.left_out:
            lines.append(f"{converted.left_out} are left out, such as {converted.reasons[0]}")
        print_result("; ".join(lines))

"""Show an evaluation on one HTML page: tables, curves, and a gallery of masks side by side.

    python tools/report.py --annotations output/demo/shapes/annotations/instances_val.json \
        --image-root output/demo/shapes/val --output output/report.html \
        --results coarse=output/demo/coarse/inference/shapes_val/coco_instances_results.json \
        --results PointRend=output/demo/pointrend/inference/shapes_val/coco_instances_results.json \
        --run PointRend=output/demo/pointrend

Of two results the first is the baseline, over which the other one gains. One result alone is
compared with the truth. The page is one file that any browser opens; it needs no network. No model
is run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.evaluation.report.page import report
from point_rend.utils.arguments import named_file
from point_rend.utils.files import check_output, write_bytes

# So that the folder of tools can be imported from a script that lies in it.


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if a file cannot be used.
    """
    parser = argparse.ArgumentParser(description="Show an evaluation on one HTML page.")
    parser.add_argument("--annotations", type=Path, required=True, help="COCO annotations")
    parser.add_argument("--image-root", type=Path, required=True, help="folder of the images")
    parser.add_argument(
        "--results",
        type=named_file,
        action="append",
        required=True,
        metavar="[NAME=]FILE",
        help="COCO results with masks; once, or twice with the baseline first",
    )
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
        "--items", type=int, default=48, help="so many objects are shown at most (48)"
    )
    parser.add_argument(
        "--min-score", type=float, default=0.5, help="of the results in the gallery (0.5)"
    )
    parser.add_argument(
        "--without-photographs",
        action="store_true",
        help="show plain gray, for photographs that must not be passed on",
    )
    args = parser.parse_args(argv)
    try:
        if args.items < 1:
            raise ValueError(f"--items: expected 1 or more, got {args.items}")
        check_output(args.output)
        text = report(args)
        write_bytes(args.output, text.encode("utf-8", errors="replace"))
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    print(f"{args.output}: {args.output.stat().st_size / 1e6:.1f} MB. Any browser opens it.")

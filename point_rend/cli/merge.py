"""`pointrend merge`: the shards of `pointrend predict --shards` as one file in COCO's format.

    pointrend merge output/shards --output instances.json

The file has the images, the categories, and the annotations with scores; with `--as results` it is
the list of COCO's result format, as `pointrend score` and others take it. It is written record by
record, and it is the same however many processes wrote the shards. Images that could not be read
are left out, and counted.

The exit code is 2 if shards are missing (unless --partial is given), damaged, or of several runs.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.program import program

FORMS = ("coco", "results")


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Merge the shards of a run into one COCO file."
    )
    parser.add_argument(
        "shards",
        nargs="+",
        metavar="SHARDS",
        help="the folder of `pointrend predict --shards`, or some shards of it",
    )
    parser.add_argument("--output", type=Path, required=True, help="the JSON file")
    parser.add_argument(
        "--as",
        dest="form",
        choices=FORMS,
        default="coco",
        help="coco (default): images, categories and annotations; results: the list of COCO's "
        "result format, with the ids of the images as the run had them",
    )
    parser.add_argument(
        "--partial", action="store_true", help="merge what there is, though shards are missing"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a file that exists")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Args:
        argv: The arguments; those of the process by default.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    args = build_parser().parse_args(argv)
    from point_rend.batch_inference.merge import merge

    with user_errors():
        merged = merge(
            args.shards,
            args.output,
            form=args.form,
            partial=args.partial,
            overwrite=args.overwrite,
        )
        lines = [f"{args.output}: {merged.annotations} annotations of {merged.images} images"]
        if merged.failed:
            lines.append(f"{merged.failed} images without results are left out")
        if merged.missing:
            lines.append(f"{merged.missing} images are in shards that are missing")
        print_result("; ".join(lines))

"""Compare semantic results of several models on one data set: mIoU, boundary mIoU, and pictures.

    pointrend compare-semantic --images val --labels labels/val --output output/cmp \
        --classes road,car,tree \
        --results "SemanticFPN=output/a/inference/streets_val/sem_seg_predictions.json" \
        --results "PointRend=output/b/inference/streets_val/sem_seg_predictions.json"

All input comes from files that a training or an evaluation leaves behind; no model is run.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.arguments import add_results_argument, check_names, named_result
from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.files import check_output
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the command line."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Compare semantic results of several models."
    )
    parser.add_argument("--images", type=Path, required=True, help="folder of the images")
    parser.add_argument("--labels", type=Path, required=True, help="folder of the label maps")
    parser.add_argument("--classes", required=True, help="as for --register-sem-seg of training")
    add_results_argument(parser, named_result, "a sem_seg_predictions.json; may be repeated")
    parser.add_argument("--output", type=Path, required=True, help="folder for the pictures")
    parser.add_argument(
        "--num-images",
        type=int,
        default=4,
        help="number of pictures, spread evenly over the images (4)",
    )
    parser.add_argument(
        "--without-photographs",
        action="store_true",
        help="leave the images out of the pictures if they must not be shared",
    )
    return parser


def check_arguments(args: argparse.Namespace) -> None:
    """Refuse arguments that would fail only during the work.

    Raises:
        FileNotFoundError: If a folder does not exist.
        ValueError: If a name is given twice, or --output cannot be written.
    """
    check_names("--results", args.results)
    for flag, folder in (("--images", args.images), ("--labels", args.labels)):
        if not folder.is_dir():
            raise FileNotFoundError(f"{flag}: there is no folder {folder}")
    if args.num_images < 0:
        raise ValueError(f"--num-images: expected 0 or more, got {args.num_images}")
    check_output(args.output, folder=True)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 after an error that the user can fix.
    """
    args = build_parser().parse_args(argv)
    from point_rend.data.datasets.class_files import read_class_names
    from point_rend.evaluation.coco_results import format_table
    from point_rend.evaluation.semantic_comparison import Comparison

    with user_errors():
        check_arguments(args)
        num_classes = len(read_class_names(args.classes))
        comparison = Comparison(dict(args.results), args.images, args.labels, num_classes)
        pictures = comparison.choose_pictures(args.output, args.num_images)
        metrics = comparison.metrics()
        if not args.without_photographs:
            comparison.check_photographs(pictures)
        print_result(f"\n{format_table(metrics)}\n")
        comparison.draw(pictures, without_photographs=args.without_photographs)
        print_result(f"Pictures: {args.output}")

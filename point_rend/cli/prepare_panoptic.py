"""`pointrend prepare-panoptic`: write the label maps of stuff that panoptic training needs.

    pointrend prepare-panoptic coco_2017_train_panoptic_separated coco_2017_val_panoptic_separated

The label maps are made of the panoptic labels of each set: 0 for all things, the classes of stuff
from 1, and 255 for ignored pixels. They are written to the folder that Detectron2 has registered.
Existing ones are kept, so an interrupted run can be started again.

The exit code is 2 if a set is unknown, or if its panoptic labels cannot be read.
"""

import argparse
from collections.abc import Sequence

from point_rend.utils.errors import print_result, user_errors
from point_rend.utils.program import program


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=program(), description="Write the label maps of stuff that panoptic training needs."
    )
    parser.add_argument(
        "datasets",
        metavar="NAME",
        nargs="+",
        help="registered set, such as cityscapes_fine_panoptic_separated_train",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 after an error that the user can correct.
    """
    datasets = build_parser().parse_args(argv).datasets
    from point_rend.data.datasets.cityscapes_panoptic import register_cityscapes_panoptic
    from point_rend.data.datasets.panoptic import write_stuff_labels

    register_cityscapes_panoptic()
    with user_errors():
        for name in datasets:
            done = write_stuff_labels(name)
            numbers = f"{done.written} label maps written, {done.kept} kept"
            print_result(f"{name}: {numbers}: {done.folder}")

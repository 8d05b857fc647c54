"""Command line of the built-in data: `python -m point_rend.data.shapes`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from point_rend.data.shapes.coco import generate
from point_rend.utils.errors import user_errors


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m point_rend.data.shapes",
        description="Draw the built-in data set.",
    )
    parser.add_argument("--output", required=True, type=Path, help="new directory")
    parser.add_argument(
        "--layout",
        choices=["coco", "cityscapes"],
        default="coco",
        help="objects in COCO's format (default), or street scenes in the layout of Cityscapes",
    )
    parser.add_argument("--train", type=int, default=300, help="training images (default 300)")
    parser.add_argument("--val", type=int, default=60, help="validation images (default 60)")
    parser.add_argument(
        "--size", type=int, nargs="+", default=[256], help="side, or height and width, in pixels"
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    if len(args.size) > 2:
        parser.error(f"--size takes one or two numbers, got {len(args.size)}")
    numbers = {
        "num_train": args.train,
        "num_val": args.val,
        "image_size": (args.size[0], args.size[-1]),
        "seed": args.seed,
    }
    with user_errors():
        if args.layout == "coco":
            lines = [
                f"{name}: {split.json_file} (images in {split.image_root})"
                for name, split in generate(args.output, **numbers).items()
            ]
        else:
            try:
                from point_rend.data.shapes.cityscapes import generate_cityscapes
            except ModuleNotFoundError as error:
                raise ValueError(f"--layout cityscapes needs the package {error.name}") from error

            lines = [
                f"{name}: {split.gt_dir} (images in {split.image_dir})"
                for name, split in generate_cityscapes(args.output, **numbers).items()
            ]
    print("\n".join(lines))


if __name__ == "__main__":
    main()

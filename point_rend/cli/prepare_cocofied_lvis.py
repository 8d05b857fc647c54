"""`pointrend prepare-cocofied-lvis`: write the LVIS annotations of COCO's classes, for AP*.

    pointrend prepare-cocofied-lvis datasets/lvis

The folder holds the official annotation files lvis_v0.5_val.json or lvis_v1_val.json, or both. For
each, the file lvis_…_val_cocofied.json is written in the same folder. Its name without the suffix
is that of a data set: DATASETS.TEST '("coco_2017_val", "lvis_v1_val_cocofied")' evaluates AP and
AP* with one inference.

The val set of LVIS v1 has images of COCO's val2017 and of its train2017. COCO models were trained
on the latter; the file that is written has those of val2017 only.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from point_rend.utils.errors import user_errors
from point_rend.utils.program import program


def default_root() -> Path:
    """Return the folder in which Detectron2 looks for LVIS."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "lvis"


def build_parser() -> argparse.ArgumentParser:
    """Build the parser."""
    parser = argparse.ArgumentParser(
        prog=program(),
        description="Write the LVIS annotations of COCO's 80 classes, which AP* is measured on.",
    )
    parser.add_argument(
        "root",
        type=Path,
        nargs="?",
        default=default_root(),
        help="folder of the annotation files of LVIS (default: %(default)s)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if nothing can be done.
    """
    root = build_parser().parse_args(argv).root
    from point_rend.data.datasets.cocofied_lvis import COCOFIED, SPLIT, find_lvis, write_cocofied

    with user_errors():
        files = find_lvis(root)
        if not files:
            names = " or ".join(f"{name}.json" for name in COCOFIED)
            raise FileNotFoundError(f"there is no {names} in {root}; get it at www.lvisdataset.org")
        for source, target in files:
            content, missing, left_out = write_cocofied(source, target)
            images, annotations, classes = (
                len(content[kind]) for kind in ("images", "annotations", "categories")
            )
            print(f"{target}: {images} images, {annotations} annotations of {classes} classes")
            if missing:
                print(f"{source.name} has no category for COCO's: {', '.join(missing)}")
            if left_out:
                print(
                    f"{left_out} images of {source.name} were left out: they are not of COCO's "
                    f"{SPLIT}, and models trained on COCO have seen them"
                )

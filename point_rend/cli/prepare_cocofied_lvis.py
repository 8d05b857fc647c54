"""Prepare LVIS for AP*: its annotations of COCO's 80 classes, for models that are trained on COCO.

    python tools/prepare_cocofied_lvis.py datasets/lvis

The folder holds the official annotation files lvis_v0.5_val.json and lvis_v1_val.json, or one of
them. Beside each a file lvis_…_val_cocofied.json is written, which is registered under this name:
DATASETS.TEST '("coco_2017_val", "lvis_v1_val_cocofied")' evaluates AP and AP* in one pass.

The val set of LVIS v1 is made of images of COCO's val2017 and of its train2017. COCO models have
seen the latter in their training; the written file has those of val2017 only.
"""

import argparse
import json
import os
from collections.abc import Sequence
from pathlib import Path

from point_rend.data.datasets.cocofied_lvis import COCOFIED, SPLIT, cocofy
from point_rend.utils.files import write_text


def default_root() -> Path:
    """Return the folder in which Detectron2 looks for LVIS."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "lvis"


def prepare(source: Path, target: Path) -> None:
    """Write the annotations of COCO's classes, and say what they are.

    Raises:
        ValueError: If the file cannot be used.
    """
    content, missing, left_out = cocofy(str(source))
    write_text(target, json.dumps(content))
    print(
        f"{target}: {len(content['images'])} images, {len(content['annotations'])} annotations of "
        f"{len(content['categories'])} classes"
    )
    if missing:
        print(f"{source.name} has no category for COCO's: {', '.join(missing)}")
    if left_out:
        print(
            f"{left_out} images of {source.name} were left out: they are not of COCO's {SPLIT}, "
            "and models that are trained on COCO have seen them"
        )


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 2 if nothing can be done.
    """
    parser = argparse.ArgumentParser(description="Prepare LVIS annotations of COCO's classes.")
    parser.add_argument(
        "root",
        type=Path,
        nargs="?",
        default=default_root(),
        help="folder of the annotation files of LVIS (default: %(default)s)",
    )
    root = parser.parse_args(argv).root
    names = [name for name in COCOFIED if (root / f"{name}.json").is_file()]
    if not names:
        files = " or ".join(f"{name}.json" for name in COCOFIED)
        parser.exit(2, f"error: there is no {files} in {root}; they are at www.lvisdataset.org\n")
    try:
        for name in names:
            prepare(root / f"{name}.json", root / f"{COCOFIED[name]}.json")
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")

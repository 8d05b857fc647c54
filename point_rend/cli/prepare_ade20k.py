"""Prepare ADE20K for Detectron2: label maps whose values are the indices of the classes.

    python tools/prepare_ade20k.py datasets/ADEChallengeData2016

The official archive (ADEChallengeData2016.zip) holds `images/` and `annotations/`, each with
`training/` and `validation/`. Its label maps have 0 for what is not labeled and 1 to 150 for the
classes; those that are written to `annotations_detectron2/` have 255 and 0 to 149. What is there
already is left alone, so that an interrupted run can be started again.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from PIL import Image

from point_rend.utils.files import atomic_file

SPLITS = {"training": 20210, "validation": 2000}  # and the number of images in each
NUM_CLASSES = 150
THREADS = 8
SHOWN = 5


def default_root() -> Path:
    """Return the folder in which Detectron2 looks for ADE20K."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser() / "ADEChallengeData2016"


def convert(source: Path, target: Path) -> None:
    """Write a label map of the archive in Detectron2's values.

    Raises:
        ValueError: If it is truncated, not grayscale, or has values beyond the classes.
    """
    try:
        with Image.open(source) as image:
            mode, labels = image.mode, np.array(image)
    except (OSError, SyntaxError) as error:
        raise ValueError(f"{source} is truncated or not an image ({error})") from error
    if mode != "L" or labels.max() > NUM_CLASSES:
        raise ValueError(
            f"{source} is of mode {mode} with values up to {labels.max()}: expected mode L and "
            f"0 to {NUM_CLASSES}"
        )
    # 0 - 1 is 255 in 8 bits.
    shifted = Image.fromarray(labels - np.uint8(1))
    with atomic_file(target) as file:
        shifted.save(file, format="PNG")


def prepare_split(root: Path, split: str) -> list[str]:
    """Convert the label maps of a split that are not converted yet.

    Args:
        root: The unpacked archive.
        split: `training` or `validation`.

    Returns:
        What is missing, in words.

    Raises:
        ValueError: As `convert`.
    """
    images = {file.stem for file in (root / "images" / split).glob("*.jpg")}
    sources = {file.stem: file for file in (root / "annotations" / split).glob("*.png")}
    folder = root / "annotations_detectron2" / split
    folder.mkdir(parents=True, exist_ok=True)
    todo = [stem for stem in sorted(sources) if not (folder / f"{stem}.png").exists()]
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda stem: convert(sources[stem], folder / f"{stem}.png"), todo):
            pass
    print(
        f"{split}: {len(todo)} label maps written, {len(sources) - len(todo)} were there: {folder}"
    )

    missing = []
    for what, stems in {
        "images have no label map": sorted(images - sources.keys()),
        "label maps have no image": sorted(sources.keys() - images),
    }.items():
        if stems:
            more = ", ..." if len(stems) > SHOWN else ""
            missing.append(f"{split}: {len(stems)} {what}: {', '.join(stems[:SHOWN])}{more}")
    if len(sources) != SPLITS[split]:
        missing.append(
            f"{split}: there are {len(sources)} label maps, the archive has {SPLITS[split]}"
        )
    return missing


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line.

    Raises:
        SystemExit: With code 1 if something is missing, with 2 if nothing can be done.
    """
    parser = argparse.ArgumentParser(description="Prepare ADE20K for Detectron2.")
    parser.add_argument(
        "root",
        type=Path,
        nargs="?",
        default=default_root(),
        help="the unpacked ADEChallengeData2016 (default: %(default)s)",
    )
    root = parser.parse_args(argv).root
    folders = [root / kind / split for kind in ("images", "annotations") for split in SPLITS]
    absent = [str(folder) for folder in folders if not folder.is_dir()]
    if absent:
        parser.exit(
            2,
            f"error: missing: {', '.join(absent)}; unpack ADEChallengeData2016.zip, the archive of "
            "the scene parsing challenge, so that they exist\n",
        )
    try:
        missing = [line for split in SPLITS for line in prepare_split(root, split)]
    except (ValueError, OSError) as error:
        parser.exit(2, f"error: {error}\n")
    for line in missing:
        print(f"missing: {line}", file=sys.stderr)
    if missing:
        raise SystemExit(1)

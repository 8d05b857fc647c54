"""Label maps of ADE20K in Detectron2's values.

The label maps of the archive have 0 for unlabeled pixels and 1 to 150 for the classes; those that
Detectron2 reads have 255 and 0 to 149.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from point_rend.utils.files import atomic_path
from point_rend.utils.pictures import is_stray_file, read_label_map

SPLITS = {"training": 20210, "validation": 2000}  # and the number of images in each
NUM_CLASSES = 150
THREADS = 8
SHOWN = 5


class Conversion(NamedTuple):
    """The conversion of one split.

    Attributes:
        folder: Folder of the new label maps.
        written: Number of label maps written.
        kept: Number of label maps that existed.
        missing: One line for each kind of missing file.
    """

    folder: Path
    written: int
    kept: int
    missing: list[str]


def convert(source: Path, target: Path) -> None:
    """Write a label map of the archive in Detectron2's values.

    Raises:
        ValueError: If it is truncated, has colors, or has values beyond the classes.
    """
    labels = read_label_map(source)
    if labels.max() > NUM_CLASSES:
        raise ValueError(f"{source} has values up to {labels.max()}: expected 0 to {NUM_CLASSES}")
    with atomic_path(target) as temporary:
        Image.fromarray(labels - np.uint8(1)).save(temporary)  # 0 - 1 is 255 in 8 bits


def missing_folders(root: Path) -> list[Path]:
    """List the folders of the archive that do not exist.

    Args:
        root: The unpacked archive, ADEChallengeData2016.
    """
    folders = [root / kind / split for kind in ("images", "annotations") for split in SPLITS]
    return [folder for folder in folders if not folder.is_dir()]


def convert_split(root: Path, split: str) -> Conversion:
    """Convert the label maps of a split that are not converted yet.

    Args:
        root: The unpacked archive.
        split: A key of `SPLITS`.

    Raises:
        ValueError: As :func:`convert`.
    """
    images = {file.stem for file in _files(root / "images" / split, "*.jpg")}
    sources = {file.stem: file for file in _files(root / "annotations" / split, "*.png")}
    folder = root / "annotations_detectron2" / split
    folder.mkdir(parents=True, exist_ok=True)
    todo = [stem for stem in sorted(sources) if not (folder / f"{stem}.png").exists()]
    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(lambda stem: convert(sources[stem], folder / f"{stem}.png"), todo):
            pass

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
    return Conversion(folder, len(todo), len(sources) - len(todo), missing)


def _files(folder: Path, pattern: str) -> list[Path]:
    return [file for file in folder.glob(pattern) if not is_stray_file(Path(file.name))]

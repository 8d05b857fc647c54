"""Panoptic labels: their ids, and the label maps of stuff that a semantic head learns from them.

Panoptic labels are colors (H, W, 3) that encode the id of a segment; a JSON file in COCO's panoptic
format lists the segments of each image. The label maps of the registered sets that train a Panoptic
FPN («separated») have 0 for all things, the classes of stuff from 1, and 255 for ignored pixels.
"""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from point_rend.data.datasets.coco import read_panoptic
from point_rend.utils.files import atomic_path, check_writable
from point_rend.utils.pictures import read_picture

VOID = 0  # id of the pixels of no segment
NUM_IDS = 1 << 24
THINGS = 0  # label of all things
IGNORED = 255
UNKNOWN = 254  # marks ids of no segment, while a map is made
THREADS = 8


class WrittenMaps(NamedTuple):
    """Label maps of a data set.

    Attributes:
        folder: Their folder.
        written: Number of maps written.
        kept: Number of maps that existed.
    """

    folder: Path
    written: int
    kept: int


def segment_ids(colors: np.ndarray) -> np.ndarray:
    """Return the ids (H, W) of panoptic labels (H, W, 3) as RGB: R + 256 G + 256² B."""
    return colors.astype(np.int64) @ np.array([1, 256, 256**2])


def write_stuff_labels(name: str) -> WrittenMaps:
    """Write the label maps of stuff of a registered data set; those that exist are kept.

    Args:
        name: Of a set with the metadata of Detectron2's `register_coco_panoptic_separated`.

    Returns:
        Their folder and numbers.

    Raises:
        FileNotFoundError: If the JSON file or panoptic labels do not exist.
        ValueError: If there is no such set, or if its panoptic labels cannot be used.
        NotSavedError: If a map cannot be written.
    """
    _check_name(name)
    check_panoptic_labels(name, evaluated=True)
    metadata = MetadataCatalog.get(name)
    content = read_panoptic(metadata.panoptic_json)
    annotations, folder = content["annotations"], Path(metadata.sem_seg_root)
    labels = {x["id"]: _label(name, x) for x in content["categories"]}
    sources = [Path(metadata.panoptic_root, x["file_name"]) for x in annotations]
    targets = [(folder / x["file_name"]).with_suffix(".png") for x in annotations]
    todo = [k for k, target in enumerate(targets) if not target.exists()]
    for parent in {targets[k].parent for k in todo}:
        parent.mkdir(parents=True, exist_ok=True)
        check_writable(parent)

    def convert(k: int) -> None:
        of_segments = {x["id"]: labels[x["category_id"]] for x in annotations[k]["segments_info"]}
        stuff = stuff_labels(read_picture(sources[k], "RGB", what="panoptic labels"), of_segments)
        if UNKNOWN in stuff:
            raise ValueError(
                f"{sources[k]} has pixels of segments that the JSON file does not list"
            )
        with atomic_path(targets[k]) as temporary:
            Image.fromarray(stuff).save(temporary)

    with ThreadPoolExecutor(THREADS) as threads:
        for _ in threads.map(convert, todo):
            pass
    return WrittenMaps(folder, len(todo), len(targets) - len(todo))


def stuff_labels(colors: np.ndarray, of_segments: Mapping[int, int]) -> np.ndarray:
    """Return the label map (H, W) uint8 of panoptic labels.

    Args:
        colors: (H, W, 3) panoptic labels.
        of_segments: The label of each segment by its id.

    Returns:
        The labels; 255 where there is no segment, 254 where an id is not listed.
    """
    table = np.full(NUM_IDS, UNKNOWN, np.uint8)
    table[VOID] = IGNORED
    for identity, label in of_segments.items():
        table[identity] = label
    return table[segment_ids(colors)]


def check_panoptic_labels(name: str, *, evaluated: bool) -> None:
    """Refuse a registered data set with panoptic labels some of which do not exist.

    Args:
        name: Its name; nothing is checked without "panoptic_json" in its metadata.
        evaluated: Whether the labels are read, too, not their list alone.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: As `read_panoptic`.
    """
    metadata = MetadataCatalog.get(name)
    json_file = metadata.get("panoptic_json")
    if not json_file:
        return
    command = metadata.get("preparation")
    advice = f"; write them with `{command}`" if command else ""
    if not os.path.exists(json_file):
        raise FileNotFoundError(
            f"{name}: the list of panoptic labels is missing: {json_file}{advice}"
        )
    if not evaluated:
        return
    names = [x["file_name"] for x in read_panoptic(json_file)["annotations"]]
    files = [Path(metadata.panoptic_root, file) for file in names]
    with ThreadPoolExecutor(THREADS) as threads:
        exist = threads.map(os.path.exists, files)
        missing = [file for file, exists in zip(files, exist, strict=True) if not exists]
    if missing:
        raise FileNotFoundError(
            f"{name}: {len(missing)} of {len(files)} panoptic labels are missing, such as "
            f"{missing[0]}{advice}"
        )


def check_stuff_labels(name: str) -> None:
    """Refuse a registered data set whose label maps of stuff have not been written.

    Raises:
        FileNotFoundError: If it has panoptic labels, and the folder of the label maps is missing.
    """
    metadata = MetadataCatalog.get(name)
    folder = metadata.get("sem_seg_root")
    if metadata.get("panoptic_json") and folder and not os.path.isdir(folder):
        raise FileNotFoundError(
            f"{name}: the label maps of stuff are missing: {folder}; write them with `pointrend "
            f"prepare-panoptic {name}`"
        )


def _check_name(name: str) -> None:
    """Refuse a name of no data set, or of one without panoptic labels and folder of label maps."""
    if name not in DatasetCatalog:
        known = sorted(x for x in DatasetCatalog.list() if "_panoptic_separated" in x)
        raise ValueError(f"data set {name!r} is not registered: expected one of {', '.join(known)}")
    metadata = MetadataCatalog.get(name)
    fields = ("panoptic_json", "panoptic_root", "sem_seg_root", "stuff_dataset_id_to_contiguous_id")
    lacking = [field for field in fields if not metadata.get(field)]
    if lacking:
        raise ValueError(
            f"{name} has no {', '.join(lacking)} in its metadata, which label maps of stuff need"
        )


def _label(name: str, category: Mapping[str, Any]) -> int:
    """Return the label of a category of the JSON file."""
    known = MetadataCatalog.get(name).stuff_dataset_id_to_contiguous_id
    if category["isthing"]:
        return THINGS
    if category["id"] not in known:
        raise ValueError(f"{name}: its metadata have no stuff of category {category['id']}")
    return int(known[category["id"]])

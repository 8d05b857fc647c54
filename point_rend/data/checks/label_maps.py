"""Checks of label maps."""

import logging
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from PIL import Image

from point_rend.data.checks.image_files import (
    FILE_THREADS,
    ImageRecord,
    check_image_files,
    is_rotated_sideways,
    shortlist,
)

logger = logging.getLogger(__name__)
MAX_VALUES = 8


def check_semantic_datasets(
    train: Sequence[str],
    test: Sequence[str],
    *,
    ignore_value: int,
    skip_broken_images: bool = False,
) -> None:
    """Read and check the images and label maps of all data sets of a run.

    Args:
        train: Registered names of the training sets; may be empty.
        test: Registered names of the sets that are evaluated.
        ignore_value: MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
        skip_broken_images: Whether the training skips unusable images.

    Raises:
        FileNotFoundError: As `count_labels`.
        ValueError: As `count_labels`, or if there is only one class or no labeled pixel.
    """
    counts = {
        name: count_labels(
            name,
            ignore_value=ignore_value,
            skip_broken_images=skip_broken_images and name not in test,
        )
        for name in dict.fromkeys([*train, *test])
    }
    for name in train:
        if len(counts[name]) == 1:
            (only,) = MetadataCatalog.get(name).stuff_classes
            raise ValueError(
                f"{name} has only one class ({only}), so there is nothing to learn: its softmax is "
                "1 everywhere; make the background a class, too"
            )
    empty = [name for name in test if not counts[name].any()]
    if train and not any(counts[name].any() for name in train):
        empty = [*train]
    if empty:
        raise ValueError(
            f"no pixel is labeled in {', '.join(empty)}: every value is {ignore_value}, "
            "which is ignored"
        )


def count_labels(name: str, *, ignore_value: int, skip_broken_images: bool = False) -> np.ndarray:
    """Check the images and label maps of a registered data set, and count their pixels.

    Args:
        name: Registered name.
        ignore_value: Value of ignored pixels.
        skip_broken_images: Whether unusable images only cause a warning; their label maps are not
            checked.

    Returns:
        (K,) number of pixels of each class.

    Raises:
        FileNotFoundError: If images or label maps are missing.
        ValueError: If the data set has no label maps, no classes or another ignored value; if an
            image or a label map is truncated, if their sizes differ, or if there are other values
            than the classes and `ignore_value`.
    """
    metadata = MetadataCatalog.get(name)
    ignored = metadata.get("ignore_label", ignore_value)
    if ignored != ignore_value:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}, but ignored pixels have the value "
            f"{ignored} in {name}"
        )
    records = _load(name)
    if not metadata.get("stuff_classes"):
        raise ValueError(
            f"{name} has no class names: expected stuff_classes in its metadata, set by "
            f"MetadataCatalog.get({name!r}).set(stuff_classes=[...])"
        )
    images = [
        ImageRecord(record["file_name"], position, None, None, [])
        for position, record in enumerate(records)
    ]
    usable = check_image_files(name, images, skip_broken=skip_broken_images)
    records = [records[int(image.image_id)] for image in usable]

    labels = [record["sem_seg_file_name"] for record in records]
    start = time.perf_counter()
    with ThreadPoolExecutor(FILE_THREADS) as threads:
        missing = [
            file
            for file, exists in zip(labels, threads.map(os.path.isfile, labels), strict=True)
            if not exists
        ]
        if missing:
            raise FileNotFoundError(
                f"{name}: {len(missing)} of {len(labels)} label maps do not exist"
                + shortlist(missing)
            )
        num_classes = len(metadata.stuff_classes)
        found = list(
            threads.map(lambda record: _read_label(record, num_classes, ignore_value), records)
        )
    faults = [
        f"{file} {label.fault}" for file, label in zip(labels, found, strict=True) if label.fault
    ]
    if faults:
        raise ValueError(
            f"{name}: {len(faults)} of {len(labels)} label maps cannot be used" + shortlist(faults)
        )
    seconds = time.perf_counter() - start
    logger.info("%s: read %d label maps in %.1f s", name, len(labels), seconds)
    return np.sum([label.counts for label in found], axis=0)[:num_classes]


class LabelMap(NamedTuple):
    """Content of a label map.

    Attributes:
        counts: Number of pixels of each of the 256 values.
        fault: The reason why it cannot be used; empty if it can.
    """

    counts: Sequence[int]
    fault: str


def _read_label(record: dict[str, Any], num_classes: int, ignore_value: int) -> LabelMap:
    nothing = [0] * 256
    try:
        with Image.open(record["sem_seg_file_name"]) as label:
            if label.mode != "L":
                return LabelMap(
                    nothing,
                    f"is of mode {label.mode}: expected 8-bit grayscale, whose values are the "
                    "indices of the classes",
                )
            size, counts = label.size, label.histogram()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        return LabelMap(nothing, f"is truncated, too large or not an image ({error})")
    with Image.open(record["file_name"]) as image:
        expected = image.size
        # A rotated PNG is rare, and finding out decodes the whole image.
        if (image.format != "PNG" or size != expected) and is_rotated_sideways(image):
            expected = expected[::-1]
    if size != expected:
        return LabelMap(
            counts, f"is {size[0]} x {size[1]} pixels, its image {expected[0]} x {expected[1]}"
        )
    wrong = [
        str(value)
        for value, count in enumerate(counts)
        if count and value >= num_classes and value != ignore_value
    ]
    if wrong:
        more = f" and {len(wrong) - MAX_VALUES} more" if len(wrong) > MAX_VALUES else ""
        return LabelMap(
            counts,
            f"has the values {', '.join(wrong[:MAX_VALUES])}{more}: expected 0 to "
            f"{num_classes - 1}, and {ignore_value} for ignored pixels",
        )
    return LabelMap(counts, "")


def _load(name: str) -> list[dict[str, Any]]:
    """Load a data set with label maps, and make sure that each belongs to its image."""
    try:
        records = DatasetCatalog.get(name)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{name} cannot be loaded: {error}") from error
    except AssertionError as error:  # Detectron2 also reports missing files this way
        raise ValueError(f"{name} cannot be loaded: {error}") from error
    for record in records:
        if "sem_seg_file_name" not in record:
            raise ValueError(
                f"{name} has no label maps (sem_seg_file_name), which a semantic model needs; "
                "register your own data set with --register-sem-seg NAME IMAGES LABELS CLASSES"
            )
    if MetadataCatalog.get(name).get("evaluator_type") == "sem_seg":
        # If both folders have the same number of files, Detectron2 pairs them by their order.
        for record in records:
            image, label = Path(record["file_name"]), Path(record["sem_seg_file_name"])
            if image.stem != label.stem:
                raise ValueError(f"{name}: {image} has no label map; {label} is of another image")
    return records

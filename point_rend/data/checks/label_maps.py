"""Checks of label maps."""

import logging
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog

from point_rend.data.checks.image_files import (
    FILE_THREADS,
    ImageRecord,
    check_image_files,
    shortlist,
)
from point_rend.data.datasets.loading import load_records
from point_rend.utils.bands import image_size
from point_rend.utils.pictures import PictureError, is_stray_file, label_values, open_picture
from point_rend.utils.pixel_format import PLAIN, PixelFormat

logger = logging.getLogger(__name__)
MAX_VALUES = 8
NUM_VALUES = 256  # of a label map
SAMPLES = 16  # label maps of a data set whose boundaries are looked at
MAX_BLENDED = 0.2  # share of the boundaries that may look like it
LONGEST_BLEND = 3  # pixels of a run of labels between those of both sides
BLOCK = 1 << 20  # pixels that are counted at a time


def check_semantic_datasets(
    train: Sequence[str],
    test: Sequence[str],
    *,
    ignore_value: int,
    skip_broken_images: bool = False,
    pixel_format: PixelFormat = PLAIN,
) -> None:
    """Read and check the images and label maps of all data sets of a run.

    Args:
        train: Registered names of the training sets; may be empty.
        test: Registered names of the sets that are evaluated.
        ignore_value: MODEL.SEM_SEG_HEAD.IGNORE_VALUE.
        skip_broken_images: Whether the training skips unusable images.
        pixel_format: Pixels that the model expects.

    Raises:
        FileNotFoundError: As `count_labels`.
        ValueError: As `count_labels`, or if there is only one class or no labeled pixel.
    """
    found = {
        name: _read_labels(
            name,
            ignore_value=ignore_value,
            skip_broken_images=skip_broken_images and name not in test,
            pixel_format=pixel_format,
        )
        for name in dict.fromkeys([*train, *test])
    }
    classes = {name: MetadataCatalog.get(name).stuff_classes for name in found}
    counts = {name: values[: len(classes[name])] for name, values in found.items()}
    for name in train:
        if len(classes[name]) == 1:
            (only,) = classes[name]
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
    for warning in suspicions({name: found[name] for name in train or test}, classes, ignore_value):
        logger.warning("%s", warning)


def suspicions(
    counts: Mapping[str, np.ndarray], classes: Mapping[str, Sequence[str]], ignore_value: int
) -> list[str]:
    """Describe what labels of valid values may still have wrong.

    Args:
        counts: Number of pixels of each value, by data set.
        classes: Class names by data set.
        ignore_value: Value of ignored pixels.
    """
    found = []
    names = ", ".join(counts)
    total = np.sum([*counts.values()], axis=0)
    num_classes = min(len(classes[name]) for name in counts)
    absent = [str(classes[next(iter(counts))][k]) for k in range(num_classes) if not total[k]]
    if absent:
        reason = ""
        if _share(total, ignore_value) and not total[num_classes - 1]:
            reason = f"; {ignore_value} is ignored: if it stands for a class, give it an index"
        elif not total[0]:
            reason = f"; labels go from 0 to {num_classes - 1}: if these begin at 1, lower them"
        found.append(
            f"{names}: {len(absent)} of {num_classes} classes have no pixel{shortlist(absent)}"
            + reason
        )
    for name, values in counts.items():
        ignored = _share(values, ignore_value)
        if ignored > 0.5:
            found.append(f"{name}: {ignored:.0%} of the pixels are {ignore_value}, thus ignored")
    return found


def _share(counts: np.ndarray, value: int) -> float:
    return float(counts[value] / max(1, counts.sum())) if 0 <= value < len(counts) else 0.0


def count_labels(
    name: str,
    *,
    ignore_value: int,
    skip_broken_images: bool = False,
    pixel_format: PixelFormat = PLAIN,
) -> np.ndarray:
    """Check the images and label maps of a registered data set, and count their pixels.

    Args:
        name: Registered name.
        ignore_value: Value of ignored pixels.
        skip_broken_images: Whether unusable images only cause a warning; their label maps are not
            checked.
        pixel_format: Pixels that the model expects.

    Returns:
        (K,) number of pixels of each class.

    Raises:
        FileNotFoundError: If images or label maps are missing.
        ValueError: If the data set has no label maps, no classes or another ignored value; if an
            image or a label map is truncated, if their sizes differ, or if there are other values
            than the classes and `ignore_value`.
    """
    values = _read_labels(
        name,
        ignore_value=ignore_value,
        skip_broken_images=skip_broken_images,
        pixel_format=pixel_format,
    )
    return values[: len(MetadataCatalog.get(name).stuff_classes)]


def _read_labels(
    name: str, *, ignore_value: int, skip_broken_images: bool, pixel_format: PixelFormat
) -> np.ndarray:
    """Check a data set as :func:`count_labels`; return the number of pixels of each value."""
    metadata = MetadataCatalog.get(name)
    ignored = metadata.get("ignore_label", ignore_value)
    if ignored != ignore_value:
        raise ValueError(
            f"MODEL.SEM_SEG_HEAD.IGNORE_VALUE is {ignore_value}, but ignored pixels have the value "
            f"{ignored} in {name}"
        )
    records = load_label_records(name)
    if not metadata.get("stuff_classes"):
        raise ValueError(
            f"{name} has no class names: expected stuff_classes in its metadata, set by "
            f"MetadataCatalog.get({name!r}).set(stuff_classes=[...])"
        )
    images = [
        ImageRecord(record["file_name"], position, None, None, [])
        for position, record in enumerate(records)
    ]
    usable = check_image_files(
        name, images, skip_broken=skip_broken_images, pixel_format=pixel_format
    )
    records = [records[int(image.image_id)] for image in usable]

    labels = [record["sem_seg_file_name"] for record in records]
    start = time.perf_counter()
    with ThreadPoolExecutor(FILE_THREADS) as threads:
        missing = [
            file
            for file, exists in zip(labels, threads.map(os.path.exists, labels), strict=True)
            if not exists
        ]
        if missing:
            raise FileNotFoundError(
                f"{name}: {len(missing)} of {len(labels)} label maps do not exist"
                + shortlist(missing)
                + _names_beside(missing[0])
            )
        num_classes = len(metadata.stuff_classes)
        sampled = range(0, len(records), max(1, len(records) // SAMPLES))
        found = list(
            threads.map(
                lambda k: read_label(
                    records[k], num_classes, ignore_value, looks_at_boundaries=k in sampled
                ),
                range(len(records)),
            )
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
    for warning in doubts(name, labels, found):
        logger.warning("%s", warning)
    return np.sum([label.counts for label in found], axis=0)


def _names_beside(missing: str) -> str:
    """Return the end of a message: which files are in the folder of a missing one."""
    folder = Path(missing).parent
    try:
        names = sorted(file.name for file in folder.iterdir() if not is_stray_file(file))
    except OSError:
        return f"; there is no folder {folder}"
    return f"; {folder} has {', '.join(names[:2])}, …" if names else f"; {folder} is empty"


class LabelMap(NamedTuple):
    """Content of a label map.

    Attributes:
        counts: Number of pixels of each of the 256 values.
        blended: As of :func:`blended_share`, if measured.
        is_jpeg: Whether the file is a JPEG.
        fault: The reason why it cannot be used; empty if it can.
    """

    counts: np.ndarray
    blended: float | None
    is_jpeg: bool
    fault: str


def doubts(name: str, files: Sequence[str], labels: Sequence[LabelMap]) -> list[str]:
    """Describe label maps whose values may have been changed by the way they were stored.

    Args:
        name: Of the data set, for the texts.
        files: The label maps.
        labels: Their contents.
    """
    jpegs = [file for file, label in zip(files, labels, strict=True) if label.is_jpeg]
    found = []
    if jpegs:
        found.append(
            f"{name}: {len(jpegs)} label maps are JPEG files, which changes labels; save them as "
            f"PNG{shortlist(jpegs)}"
        )
    sampled = [k for k, label in enumerate(labels) if label.blended is not None]
    blended = [k for k in sampled if (labels[k].blended or 0) > MAX_BLENDED]
    if 2 * len(blended) > len(sampled):
        found.append(
            f"{name}: many pixels at boundaries have labels between those of both sides; label "
            f"maps have to be resized without interpolation{shortlist([files[k] for k in blended])}"
        )
    return found


def read_label(
    record: dict[str, Any], num_classes: int, ignore_value: int, *, looks_at_boundaries: bool
) -> LabelMap:
    """Read and check the label map of a record.

    Args:
        record: With the files of an image and of its label map.
        num_classes: Number of classes.
        ignore_value: Value of ignored pixels.
        looks_at_boundaries: Whether to measure :func:`blended_share`.
    """
    nothing = np.zeros(NUM_VALUES, np.int64)
    try:
        with open_picture(record["sem_seg_file_name"], what="label map") as opened:
            is_jpeg = opened.format in ("JPEG", "MPO")
            labels = label_values(opened, record["sem_seg_file_name"])
    except (OSError, PictureError) as error:
        return LabelMap(nothing, None, False, getattr(error, "fault", None) or str(error))
    expected = image_size(record["file_name"])
    size = labels.shape[::-1]
    if size != expected:
        fault = f"is {size[0]} x {size[1]} pixels, its image {expected[0]} x {expected[1]}"
        if size == image_size(record["file_name"], is_turned=False):
            fault += (
                " after its EXIF orientation turns it; remove the orientation (exiftool "
                "-Orientation= FILE)"
            )
        return LabelMap(nothing, None, is_jpeg, fault)
    if labels.dtype == np.uint8:
        counts = sum(
            (
                np.bincount(labels.flat[start : start + BLOCK], minlength=NUM_VALUES)
                for start in range(0, labels.size, BLOCK)
            ),
            start=nothing,
        )
        values = np.flatnonzero(counts)
    else:
        counts, values = nothing, np.unique(labels)
    wrong = values[(values >= num_classes) & (values != ignore_value)]
    if len(wrong):
        return LabelMap(counts, None, is_jpeg, _wrong_values(wrong, num_classes, ignore_value))
    return LabelMap(counts, blended_share(labels) if looks_at_boundaries else None, is_jpeg, "")


def _wrong_values(wrong: np.ndarray, num_classes: int, ignore_value: int) -> str:
    more = f" and {len(wrong) - MAX_VALUES} more" if len(wrong) > MAX_VALUES else ""
    advice = ""
    if wrong.tolist() == [num_classes]:
        advice = f"; labels from 1 to {num_classes} have to be lowered by 1"
    elif wrong.tolist() == [NUM_VALUES - 1]:
        advice = "; if it stands for a class, give it an index"
    elif more:
        advice = "; label maps have to be resized without interpolation and saved as PNG"
    return (
        f"has the values {', '.join(map(str, wrong[:MAX_VALUES]))}{more}: expected 0 to "
        f"{num_classes - 1}, and {ignore_value} for ignored pixels{advice}"
    )


def blended_share(labels: np.ndarray) -> float:
    """Return the share of the boundaries along rows that interpolation seems to have blended.

    These have short runs of labels between those of both sides.

    Args:
        labels: (H, W) uint8.
    """
    pixels = labels.reshape(-1)
    ends = np.flatnonzero(np.diff(pixels, append=~pixels[-1:]))  # of the runs
    values, lengths = pixels[ends], np.diff(ends, prepend=-1)
    before, run, after = values[:-2], values[1:-1], values[2:]
    between = ((before < run) & (run < after)) | ((before > run) & (run > after))
    return float((between & (lengths[1:-1] <= LONGEST_BLEND)).sum() / len(values))


def load_label_records(name: str) -> list[dict[str, Any]]:
    """Load a data set with label maps, and make sure that each belongs to its image."""
    records = load_records(name)
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

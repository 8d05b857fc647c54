"""Pixels of classes in label maps.

Shape letters: K classes, H × W pixels.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from detectron2.data import MetadataCatalog
from tqdm import tqdm

from point_rend.data.checks.image_files import FILE_THREADS
from point_rend.data.checks.label_maps import (
    NUM_VALUES,
    SAMPLES,
    LabelMap,
    doubts,
    load_label_records,
    read_label,
    suspicions,
)
from point_rend.utils.bands import image_size
from point_rend.utils.pictures import PictureError, read_label_map

OUTLINED = 100  # label maps whose boundaries are measured


class Labels(NamedTuple):
    """Label maps of data sets.

    Attributes:
        files: Image files.
        sizes: (I, 2) width and height in pixels, NaN if unknown.
        pixels: K numbers of pixels.
        images: K numbers of images with the class.
        ignored: Ignored pixels.
        boundary: K shares of the pixels of a class that touch another one, in a sample; NaN for a
            class without pixels there.
        faults: Label maps that cannot be used, with the reason.
        warnings: Doubtful properties.
    """

    files: list[str]
    sizes: np.ndarray
    pixels: np.ndarray
    images: np.ndarray
    ignored: int
    boundary: np.ndarray
    faults: list[str]
    warnings: list[str]


class SemanticReport(NamedTuple):
    """Pixels of classes in training and evaluation.

    Attributes:
        names: K names.
        train: Label maps of training, if there are training sets.
        test: Those of the sets that are evaluated, if there are any.
        imbalance: Pixels of the most frequent class per pixel of the rarest, in training.
        absent_train: Classes without pixels in training.
        absent_test: Without pixels in the sets that are evaluated.
        only_test: Without pixels in training, but with some there.
    """

    names: list[str]
    train: Labels | None
    test: Labels | None
    imbalance: float | None
    absent_train: list[str]
    absent_test: list[str]
    only_test: list[str]


def read_labels(names: Sequence[str], *, num_classes: int, ignore_value: int) -> Labels:
    """Read the label maps of data sets; a bar on the terminal shows the progress.

    Args:
        names: Registered names.
        num_classes: Number of classes K.
        ignore_value: Value of ignored pixels.

    Raises:
        FileNotFoundError: If a folder is missing.
        ValueError: If a data set has no label maps.
    """
    files: list[str] = []
    faults: list[str] = []
    warnings: list[str] = []
    sizes: list[tuple[float, float]] = []
    counts = np.zeros(NUM_VALUES, np.int64)
    images = np.zeros(NUM_VALUES, np.int64)
    boundary = np.zeros((2, NUM_VALUES), np.int64)  # pixels at a boundary, and all of the sample
    classes = {name: MetadataCatalog.get(name).get("stuff_classes") or [] for name in names}
    for name in names:
        records = load_label_records(name)
        sampled = range(0, len(records), max(1, len(records) // SAMPLES))

        def read(k: int, records: list = records, sampled: range = sampled) -> LabelMap:
            try:
                return read_label(
                    records[k], num_classes, ignore_value, looks_at_boundaries=k in sampled
                )
            except (OSError, PictureError) as error:
                nothing = np.zeros(NUM_VALUES, np.int64)
                return LabelMap(nothing, None, False, f"cannot be compared with its image: {error}")

        with ThreadPoolExecutor(FILE_THREADS) as threads:
            found = list(
                tqdm(
                    threads.map(read, range(len(records))),
                    total=len(records),
                    unit="label map",
                    disable=None,
                )
            )
        maps = [record["sem_seg_file_name"] for record in records]
        faults += [f"{file} {x.fault}" for file, x in zip(maps, found, strict=True) if x.fault]
        warnings += doubts(name, maps, found)
        own = np.sum([x.counts for x in found], axis=0)
        warnings += suspicions({name: own}, classes, ignore_value) if own.any() else []
        counts += own
        images += np.sum([x.counts > 0 for x in found], axis=0)
        usable = [k for k, x in enumerate(found) if not x.fault]
        for k in usable[:: max(1, len(usable) // OUTLINED)]:
            boundary += _boundary_pixels(read_label_map(maps[k]), ignore_value)
        files += [record["file_name"] for record in records]
        sizes += [_size(record["file_name"]) for record in records]
    with np.errstate(invalid="ignore"):
        shares = boundary[0] / np.where(boundary[1], boundary[1], np.nan)
    in_range = 0 <= ignore_value < NUM_VALUES
    return Labels(
        files,
        np.array(sizes, dtype=np.float64).reshape(-1, 2),
        counts[:num_classes],
        images[:num_classes],
        int(counts[ignore_value]) if in_range else 0,
        shares[:num_classes],
        faults,
        warnings,
    )


def _size(file: str) -> tuple[float, float]:
    try:
        return image_size(file)
    except (OSError, PictureError):
        return (np.nan, np.nan)


def _boundary_pixels(labels: np.ndarray, ignore_value: int) -> np.ndarray:
    """Count the pixels (2, 256) of each value in (H, W): those with a neighbor of another, and all.

    Ignored neighbors are no others.
    """
    touches = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        first = labels[:-1] if axis == 0 else labels[:, :-1]
        second = labels[1:] if axis == 0 else labels[:, 1:]
        differ = (first != second) & (first != ignore_value) & (second != ignore_value)
        if axis == 0:
            touches[:-1] |= differ
            touches[1:] |= differ
        else:
            touches[:, :-1] |= differ
            touches[:, 1:] |= differ
    return np.stack(
        [
            np.bincount(labels[touches], minlength=NUM_VALUES),
            np.bincount(labels.reshape(-1), minlength=NUM_VALUES),
        ]
    )


def compare_labels(
    names: Sequence[str], train: Labels | None, test: Labels | None
) -> SemanticReport:
    """Compare the label maps of training and evaluation."""
    nothing = np.zeros(len(names), np.int64)
    in_train = train.pixels if train else nothing
    in_test = test.pixels if test else nothing
    present = in_train[in_train > 0]

    def chosen(mask: np.ndarray) -> list[str]:
        return [names[k] for k in np.flatnonzero(mask).tolist()]

    return SemanticReport(
        list(names),
        train,
        test,
        float(present.max() / present.min()) if present.size else None,
        chosen(in_train == 0) if train else [],
        chosen(in_test == 0) if test else [],
        chosen((in_train == 0) & (in_test > 0)) if train else [],
    )

"""Images of data sets: their sizes, and the number of objects in them.

Shape letters: I images.
"""

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from point_rend.inspection.records import Objects

COMMON_SIZES = 5
OBJECT_EDGES = (0, 1, 2, 3, 5, 9, 17, 33, 65, 129, 257, np.inf)  # objects of an image
PERCENTILES = (0, 5, 50, 95, 100)


class Shapes(NamedTuple):
    """Sizes of images and their aspect ratios.

    Attributes:
        common: The most frequent sizes (width, height, images).
        width: Pixels at `PERCENTILES`.
        height: Pixels at `PERCENTILES`.
        aspect: Width / height at `PERCENTILES`.
        scale: Scales of the resizing in tests at `PERCENTILES`.
        unknown: Images of unknown size.
    """

    common: list[tuple[int, int, int]]
    width: list[float]
    height: list[float]
    aspect: list[float]
    scale: list[float]
    unknown: int


class Objectness(NamedTuple):
    """Numbers of objects in the images of a set.

    Attributes:
        annotations: All annotations.
        objects: Those that are possible and no crowds.
        crowds: Crowds (iscrowd 1), which are not trained on.
        impossible: Annotations that are impossible, wholly or in part.
        empty: Images without any annotation.
        without_objects: Images with annotations of which none is an object: crowds and impossible
            ones.
        left_out: Images that the training leaves out (DATALOADER.FILTER_EMPTY_ANNOTATIONS).
        histogram: Images between `OBJECT_EDGES`.
        percentiles: Objects of an image at `PERCENTILES`.
        full: Images with more objects than TEST.DETECTIONS_PER_IMAGE.
        lost: Objects beyond that number.
        several_parts: Objects of several polygons.
        runs: Objects whose mask is an RLE.
        holes: Objects with a polygon within another.
        corners: Median number of the corners of the polygons of an object.
    """

    annotations: int
    objects: int
    crowds: int
    impossible: int
    empty: int
    without_objects: int
    left_out: int
    histogram: list[int]
    percentiles: list[float]
    full: int
    lost: int
    several_parts: int
    runs: int
    holes: int
    corners: float


def measure_shapes(sizes: np.ndarray, scales: np.ndarray) -> Shapes:
    """Measure the sizes of images.

    Args:
        sizes: (I, 2) width and height, NaN if unknown.
        scales: (I,) scales of the resizing in tests.
    """
    known = np.isfinite(sizes).all(axis=1)
    sizes, scales = sizes[known], scales[known]
    if not len(sizes):
        return Shapes([], [], [], [], [], int((~known).sum()))
    common = Counter(map(tuple, sizes.astype(int).tolist())).most_common(COMMON_SIZES)
    width, height, aspect, scale = (
        np.percentile(values, PERCENTILES).tolist()
        for values in (sizes[:, 0], sizes[:, 1], sizes[:, 0] / sizes[:, 1], scales)
    )
    found = [(size[0], size[1], count) for size, count in common]
    return Shapes(found, width, height, aspect, scale, int((~known).sum()))


def trained_images(objects: Objects, *, filters_empty: bool) -> np.ndarray:
    """Return the images that a training uses (I,) bool: by default those with an object."""
    return (objects.per_image(objects.usable) > 0) | (not filters_empty)


def count_in_images(objects: Objects, *, detections: int, filters_empty: bool) -> Objectness:
    """Count the objects of images.

    Args:
        objects: The annotations.
        detections: TEST.DETECTIONS_PER_IMAGE.
        filters_empty: DATALOADER.FILTER_EMPTY_ANNOTATIONS.
    """
    usable = objects.usable
    numbers = objects.per_image(usable)
    annotated = objects.per_image(np.ones(len(usable), bool)) > 0
    left_out = ~trained_images(objects, filters_empty=filters_empty)
    polygons = objects.corners[usable & (objects.parts > 0)]
    return Objectness(
        annotations=len(usable),
        objects=int(usable.sum()),
        crowds=int(objects.crowd.sum()),
        impossible=int((~objects.kept).sum()),
        empty=int((~annotated).sum()),
        without_objects=int((annotated & (numbers == 0)).sum()),
        left_out=int(left_out.sum()),
        histogram=np.histogram(numbers, OBJECT_EDGES)[0].tolist(),
        percentiles=np.percentile(numbers, PERCENTILES).tolist() if len(numbers) else [],
        full=int((numbers > detections).sum()),
        lost=int((numbers - detections).clip(0).sum()),
        several_parts=int((usable & (objects.parts > 1)).sum()),
        runs=int((usable & (objects.parts == 0)).sum()),
        holes=int((usable & objects.has_hole).sum()),
        corners=float(np.median(polygons)) if len(polygons) else 0.0,
    )


def shared_files(train: Sequence[str], test: Sequence[str]) -> int:
    """Count the images of evaluation whose very file is one of training, too."""
    of_training = set(train)
    return sum(file in of_training for file in test)
